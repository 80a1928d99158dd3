"""Rendered conversations into ids and trained ranges, by position.

Three ways, one result:

- `BatchEncoder`: whole texts through the fast library, many at once. Each edge of a range becomes a
  token's position by the bytes that tokens stand for; where these are not the bytes of the text (a
  normalizer changed it) the conversation goes the next way.
- `WholeEncoder`: the whole text through `tokenizers`, with offsets, as Hugging Face does it; some fifty
  times slower. Every job checks the first way against it (see `chat_write.py`).
- `PieceEncoder`: for text that spells a control token of its own: the text is cut at the tokens that the
  template wrote, and the pieces between are encoded as plain characters.

A token that holds both a trained and an untrained character is trained, as in `transformers`.

Source: transformers 5.23, `apply_chat_template(return_assistant_tokens_mask=True)`; the two are compared
in tests/parity/test_chat_vs_transformers.py.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from data_tools.bpe import Encoded, HuggingFace
from data_tools.chat_template import TokenFinder, plain
from data_tools.errors import UsageError
from data_tools.loss_mask import LossMasks
from data_tools.tokenizer import Tokenizer

Ranges = list[tuple[int, int]]
Ints = npt.NDArray[np.int64]


class Marked(NamedTuple):
    """A rendered conversation, and what of it is trained on.

    Attributes:
        text: As `Rendered.text`.
        trained: Ranges of characters, ascending.
        thinking: Ranges of characters inside the tags of thinking.
        answer: Range of the assistant's last turn.
        is_protected: Whether control tokens that the conversation itself spells carry marks; see `plain`.
    """

    text: str
    trained: Ranges
    thinking: Ranges
    answer: tuple[int, int]
    is_protected: bool = False


@dataclass(frozen=True)
class EncodedChats:
    """Some conversations in tokens.

    Attributes:
        documents: Their ids.
        masks: What is trained on.
        answer_tokens: [conversations] tokens of the assistant's last turn, without the token that ends it.
    """

    documents: Encoded
    masks: LossMasks
    answer_tokens: Ints

    def one(self, number: int) -> EncodedChats:
        """One of them."""
        keep = np.arange(len(self.documents)) == number
        start = int(self.documents.lengths[:number].sum())
        length = self.documents.lengths[number]
        documents = Encoded(self.documents.ids[start : start + length], self.documents.lengths[keep])
        return EncodedChats(documents, self.masks.chosen(keep), self.answer_tokens[keep])

    def equals(self, other: EncodedChats) -> bool:
        """Whether ids and masks are the same."""
        pairs = [(self.documents.ids, other.documents.ids), (self.documents.lengths, other.documents.lengths)]
        pairs += [(self.masks.runs, other.masks.runs), (self.masks.thinking, other.masks.thinking)]
        return all(np.array_equal(one, another) for one, another in pairs)

    @staticmethod
    def joined(parts: Sequence[EncodedChats]) -> EncodedChats:
        """All of some."""
        return EncodedChats(
            Encoded(
                np.concatenate([part.documents.ids for part in parts]),
                np.concatenate([part.documents.lengths for part in parts]),
            ),
            LossMasks.joined([part.masks for part in parts]),
            np.concatenate([part.answer_tokens for part in parts]),
        )


@dataclass(frozen=True)
class AddedTokens:
    """What a tokenizer.json says beside its merges.

    Attributes:
        ids: Of all added tokens.
        control: Those that text must not forge.
        is_exact: Whether the tokens of a text stand for its bytes, one after the other, and text cut at
            added tokens gives the same ids as text encoded whole: no token takes white space with it, and
            nothing is put before the first piece only.
        normalizes: Whether text is brought to its composed form (NFC) first.
        token_bytes: [ids] bytes that each token of a byte-level vocabulary stands for.
        is_control: [ids] whether text must not forge it.
    """

    ids: dict[str, int]
    control: tuple[str, ...]
    is_exact: bool
    normalizes: bool
    token_bytes: npt.NDArray[np.int32]
    is_control: npt.NDArray[np.bool_]

    def control_in(self, ids: npt.NDArray[Any]) -> list[int]:
        """The control tokens among some ids, each once."""
        if not self.control:
            return []
        numbers = np.flatnonzero(self.is_control)
        near = ids[(ids >= numbers[0]) & (ids <= numbers[-1])]  # mostly few: a comparison costs less than a look-up
        found: list[int] = np.unique(near[self.is_control[near]]).tolist()
        return found


def _backend_of(tokenizer: Tokenizer) -> Any:
    if not isinstance(tokenizer.reference, HuggingFace):
        raise UsageError("--tokenizer: a SentencePiece model; conversations need a tokenizer.json")
    return tokenizer.reference.backend


def added_tokens(tokenizer: Tokenizer) -> AddedTokens:
    """Looks at a loaded tokenizer.

    Raises:
        UsageError: If it is a SentencePiece model.
    """
    backend = _backend_of(tokenizer)
    tokens = backend.get_added_tokens_decoder()
    greedy = any(t.lstrip or t.rstrip or t.single_word or t.normalized for t in tokens.values())
    normalizer = orjson.loads(backend.normalizer.__getstate__())["type"] if backend.normalizer else None
    splitting = orjson.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer else None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    token_bytes = np.zeros(tokenizer.vocab_size, np.int32)
    token_bytes[list(vocabulary.values())] = list(map(len, vocabulary))  # a byte is a character there
    is_control = np.zeros(tokenizer.vocab_size, bool)
    for number, token in tokens.items():
        token_bytes[number] = len(token.content.encode())
        is_control[number] = token.special
    return AddedTokens(
        ids={token.content: number for number, token in tokens.items()},
        control=tuple(token.content for token in tokens.values() if token.special),
        is_exact=not greedy and normalizer in (None, "NFC") and _splits_alike(splitting),
        normalizes=normalizer is not None,
        token_bytes=token_bytes,
        is_control=is_control,
    )


def _splits_alike(pre_tokenizer: dict[str, Any] | None) -> bool:
    if not pre_tokenizer:
        return False
    if pre_tokenizer["type"] == "Sequence":
        return all(map(_splits_alike, pre_tokenizer["pretokenizers"]))
    return pre_tokenizer["type"] in ("Split", "Digits") or (
        pre_tokenizer["type"] == "ByteLevel" and not pre_tokenizer["add_prefix_space"]
    )


class Offsets:
    """The slow tokenizer, which says where each token stands in the text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend = _backend_of(tokenizer)

    def encode(self, text: str, *, parses_control: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and the characters [start, stop) of each; control tokens spelled in it are parsed, or plain text."""
        self._backend.encode_special_tokens = not parses_control  # named backwards
        encoding = self._backend.encode(text, add_special_tokens=False)
        self._backend.encode_special_tokens = False  # as `ChatJob.load_tokenizer` left it
        return encoding.ids, encoding.offsets


def _token_of(offsets: Sequence[tuple[int, int]], character: int, *, up: bool) -> int:
    """The token that a range of characters starts with (`up`: the one after its end)."""
    if up:
        return bisect_left(offsets, character, key=lambda span: span[0])
    return bisect_right(offsets, character, key=lambda span: span[1])


def _longest(ranges: Ranges) -> tuple[int, int]:
    return max(((start, stop) for start, stop in ranges if stop > start), key=lambda r: r[1] - r[0], default=(0, 0))


def _joined(ranges: Ranges) -> Ranges:
    """Ascending ranges without the empty ones, those that touch made one."""
    joined: Ranges = []
    for start, stop in ranges:
        if start >= stop:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


class WholeEncoder:
    """Encodes a conversation as one text."""

    def __init__(self, tokenizer: Tokenizer, tokens: AddedTokens) -> None:
        self._offsets = Offsets(tokenizer)
        self._tokens = tokens
        self._control = TokenFinder(tokens.control)

    def can_encode(self, chat: Marked) -> bool:
        """Whether the text spells no control token of its own: encoded whole, it would become one."""
        return not chat.is_protected or len(self._control.find(plain(chat.text))) == len(self._control.find(chat.text))

    def encode(self, chat: Marked) -> EncodedChats:
        """Ids and ranges of one conversation."""
        ids, offsets = self._offsets.encode(plain(chat.text), parses_control=True)
        return _placed(chat, ids, offsets, self._tokens)


class PieceEncoder:
    """Encodes a conversation whose text spells control tokens, which stay text."""

    def __init__(self, tokenizer: Tokenizer, tokens: AddedTokens) -> None:
        self._offsets = Offsets(tokenizer)
        self._tokens = tokens
        self._anchors = TokenFinder(list(tokens.ids))

    def encode(self, chat: Marked) -> EncodedChats:
        """Ids and ranges of one conversation."""
        ids: list[int] = []
        offsets: Ranges = []
        at = begin = 0  # in the text with marks, and without
        for start, stop in [*self._anchors.find(chat.text), (len(chat.text), len(chat.text))]:
            piece = plain(chat.text[at:start])
            more, spans = self._offsets.encode(piece, parses_control=False)
            ids += more
            offsets += [(begin + a, begin + b) for a, b in spans]
            begin += len(piece)
            if stop > start:
                ids.append(self._tokens.ids[chat.text[start:stop]])
                offsets.append((begin, begin + stop - start))
                begin += stop - start
            at = stop
        return _placed(chat, ids, offsets, self._tokens)


def _placed(chat: Marked, ids: list[int], offsets: Sequence[tuple[int, int]], tokens: AddedTokens) -> EncodedChats:
    """One conversation with the token positions of its ranges, by the characters that each token covers."""
    places = _places(chat, lambda text: len(plain(text)))

    def place(ranges: Ranges, *, outward: bool) -> Ranges:
        edges = [(places[start], places[stop]) for start, stop in ranges]
        return [(_token_of(offsets, a, up=not outward), _token_of(offsets, b, up=outward)) for a, b in edges if a < b]

    runs = _joined(place(chat.trained, outward=True))
    answer = place([chat.answer], outward=True)
    spoken = sum(stop - start - int(tokens.is_control[ids[stop - 1]]) for start, stop in answer if stop > start)
    return EncodedChats(
        documents=Encoded(np.array(ids, np.uint32), np.array([len(ids)], np.int64)),
        masks=LossMasks(
            first_run=np.array([0, len(runs)], np.int64),
            thinking=np.array([_longest(place(chat.thinking, outward=False))], np.int32),
            runs=np.array(runs, np.int32).reshape(-1, 2),
        ),
        answer_tokens=np.array([spoken], np.int64),
    )


class BatchEncoder:
    """Encodes many conversations at once."""

    def __init__(self, tokenizer: Tokenizer, tokens: AddedTokens) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens

    def encode(self, chats: Sequence[Marked]) -> tuple[EncodedChats, npt.NDArray[np.bool_]]:
        """Ids and ranges of all, and [conversations] whether they are right; of the others nothing is."""
        encoded = self._tokenizer.encode_batch(["" if chat.is_protected else chat.text for chat in chats])
        places = _BytePlaces(encoded, self._tokens.token_bytes)
        is_right = ~np.array([chat.is_protected for chat in chats])
        if self._tokens.normalizes:
            is_right &= [unicodedata.is_normalized("NFC", chat.text) for chat in chats]
        chats = [chat if chat.text.isascii() else _in_bytes(chat) for chat in chats]
        sizes = [len(chat.text) if chat.text.isascii() else len(chat.text.encode()) for chat in chats]
        is_right &= places.bytes_of_documents == sizes
        trainer, trained = _flat([chat.trained for chat in chats], is_right)
        thinker, thinking = _flat([chat.thinking for chat in chats], is_right)
        answerer, answers = _flat([[chat.answer] for chat in chats], is_right)
        runs = places.ranges(trainer, trained, outward=True)
        masks = _masks(len(chats), trainer, runs, thinker, places.ranges(thinker, thinking, outward=False))
        answer_tokens = self._answers(places, answerer, places.ranges(answerer, answers, outward=True))
        return EncodedChats(encoded, masks, answer_tokens), is_right

    def _answers(self, places: _BytePlaces, owner: Ints, answer: Ints) -> Ints:
        counts = np.zeros(len(places.first), np.int64)
        last = places.encoded.ids[places.first[owner] + answer[:, 1] - 1]
        counts[owner] = answer[:, 1] - answer[:, 0] - self._tokens.is_control[last]
        return counts


class _BytePlaces:
    """Where the bytes of some texts are in their tokens.

    Attributes:
        encoded: The tokens of all texts.
        first: [texts] position of the first token of each.
        bytes_of_documents: [texts] bytes that their tokens stand for.
    """

    def __init__(self, encoded: Encoded, token_bytes: npt.NDArray[np.int32]) -> None:
        sizes = token_bytes[encoded.ids]
        bounds = np.zeros(len(sizes) + 1, np.int32 if len(sizes) * int(token_bytes.max()) < 2**31 else np.int64)
        np.cumsum(sizes, out=bounds[1:])
        last = np.cumsum(encoded.lengths)
        self.encoded = encoded
        self.first = last - encoded.lengths
        self.bytes_of_documents = bounds[last] - bounds[self.first]
        self._starts, self._ends = bounds[:-1], bounds[1:]
        self._base = bounds[self.first]

    def ranges(self, owner: Ints, ranges: Ints, *, outward: bool) -> Ints:
        """Ranges of bytes as ranges of tokens, [ranges, 2].

        Args:
            owner: [ranges] number of the text.
            ranges: [ranges, 2] bytes of the text.
            outward: Whether all tokens that touch them are meant, or only those that lie inside.
        """
        places = (ranges + self._base[owner][:, None]).astype(self._starts.dtype)  # else `searchsorted` copies that
        start, stop = places[:, 0], places[:, 1]
        if outward:
            found = np.searchsorted(self._ends, start, "right"), np.searchsorted(self._starts, stop, "left")
        else:
            found = np.searchsorted(self._starts, start, "left"), np.searchsorted(self._ends, stop, "right")
        tokens: Ints = np.stack(found, axis=1) - self.first[owner][:, None]
        return tokens


def _in_bytes(chat: Marked) -> Marked:
    """A conversation with its ranges in bytes of UTF-8."""
    places = _places(chat, lambda text: len(text.encode()))

    def place(ranges: Ranges) -> Ranges:
        return [(places[start], places[stop]) for start, stop in ranges]

    (answer,) = place([chat.answer])
    return chat._replace(trained=place(chat.trained), thinking=place(chat.thinking), answer=answer)


def _places(chat: Marked, size_of: Callable[[str], int]) -> dict[int, int]:
    """Each edge of a range, and the text's end, as the size of the text before it; every character is seen once."""
    ranges = [*chat.trained, *chat.thinking, chat.answer]
    places, size, at = {}, 0, 0
    for edge in sorted({len(chat.text), *chain.from_iterable(ranges)}):
        size += size_of(chat.text[at:edge])
        places[edge], at = size, edge
    return places


def _flat(ranges: Sequence[Ranges], is_wanted: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """[ranges] the conversation of each, and [ranges, 2] where it is, of those that are wanted and not empty."""
    owner = np.repeat(np.arange(len(ranges)), np.fromiter(map(len, ranges), np.int64, len(ranges)))
    edges = chain.from_iterable(chain.from_iterable(ranges))
    pairs = np.fromiter(edges, np.int64, 2 * len(owner)).reshape(-1, 2)
    keep = (pairs[:, 0] < pairs[:, 1]) & is_wanted[owner]
    return owner[keep], pairs[keep]


def _masks(count: int, owner: Ints, runs: Ints, thinker: Ints, thinking: Ints) -> LossMasks:
    """Masks of trained ranges, those that touch made one, and of the longest trace of each conversation."""
    opens = np.ones(len(runs), bool)
    opens[1:] = (owner[1:] != owner[:-1]) | (runs[1:, 0] > runs[:-1, 1])
    closes = np.append(opens[1:], True)[: len(runs)]
    counts = np.bincount(owner[opens], minlength=count)
    longest = np.zeros((count, 2), np.int32)
    length = thinking[:, 1] - thinking[:, 0]
    order = np.lexsort((-np.arange(len(length)), length, thinker))  # the last of each thinker is the longest
    order = order[length[order] > 0]
    longest[thinker[order]] = thinking[order]
    return LossMasks(
        first_run=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        thinking=longest,
        runs=np.stack([runs[opens, 0], runs[closes, 1]], axis=1).astype(np.int32),
    )
