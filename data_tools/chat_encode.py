"""Rendered conversations into ids and trained ranges, by position.

Two ways, one result:

- `SegmentEncoder`: the text is cut at added tokens, the pieces between go through the fast tokenizer in
  one batch, and each edge of a trained range becomes a token's position: inside a piece by the bytes that
  its tokens stand for, or, where these are not the bytes of the text, by the slow tokenizer's offsets.
- `WholeEncoder`: the whole text through `tokenizers`, with offsets, as Hugging Face does it; some thirty
  times slower. Every job checks the first way against it (see `chat.py`).

A token that holds both a trained and an untrained character is trained, as in `transformers`.

Source: transformers 5.23, `apply_chat_template(return_assistant_tokens_mask=True)`; the two are compared
in tests/parity/test_chat_vs_transformers.py.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from data_tools.chat_template import TokenFinder, plain
from data_tools.readers import BadRecord
from data_tools.tokenizer import Tokenizer

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Marked:
    """A rendered conversation, and what of it is trained on.

    Attributes:
        text: As `Rendered.text`.
        trained: Ranges of characters, ascending.
        thinking: Ranges of characters inside the tags of thinking.
    """

    text: str
    trained: Ranges
    thinking: Ranges


@dataclass(frozen=True)
class EncodedChat:
    """One conversation in tokens.

    Attributes:
        ids: [tokens].
        trained: Ranges of tokens, ascending.
        thinking: Range of the longest trace of thinking, (0, 0) for none.
    """

    ids: npt.NDArray[np.int64]
    trained: Ranges
    thinking: tuple[int, int]


@dataclass(frozen=True)
class AddedTokens:
    """The added tokens of a tokenizer.json.

    Attributes:
        ids: Of all of them.
        control: Those that text must not forge.
        segments_are_safe: Whether text cut at them gives the same ids as text encoded whole: no token takes
            white space with it, and nothing is put before the first piece only.
        token_bytes: [ids] bytes that each token of a byte-level vocabulary stands for.
    """

    ids: dict[str, int]
    control: tuple[str, ...]
    segments_are_safe: bool
    token_bytes: npt.NDArray[np.int64]


def added_tokens(tokenizer: Path) -> AddedTokens:
    """Reads the added tokens of a tokenizer folder."""
    content = orjson.loads((tokenizer / "tokenizer.json").read_bytes())
    tokens: list[dict[str, Any]] = content.get("added_tokens") or []
    greedy = any(token.get(flag) for token in tokens for flag in ("lstrip", "rstrip", "single_word", "normalized"))
    normalizer = (content.get("normalizer") or {}).get("type")
    vocabulary: dict[str, int] = content["model"]["vocab"]
    token_bytes = np.zeros(max(vocabulary.values()) + 1, np.int64)
    token_bytes[list(vocabulary.values())] = list(map(len, vocabulary))  # a byte is a character there
    return AddedTokens(
        ids={token["content"]: token["id"] for token in tokens},
        control=tuple(token["content"] for token in tokens if token.get("special")),
        segments_are_safe=not greedy and normalizer in (None, "NFC") and _splits_alike(content.get("pre_tokenizer")),
        token_bytes=token_bytes,
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
        self._backend = tokenizer.reference.backend

    def encode(self, text: str, *, parses_control: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and the characters [start, stop) of each; control tokens spelled in it are parsed, or plain text."""
        self._backend.encode_special_tokens = not parses_control  # named backwards
        encoding = self._backend.encode(text, add_special_tokens=False)
        self._backend.encode_special_tokens = True  # as `Tokenizer.load` left it
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

    def __init__(self, offsets: Offsets, tokens: AddedTokens) -> None:
        self._offsets = offsets
        self._control = TokenFinder(tokens.control)

    def can_encode(self, chat: Marked) -> bool:
        """Whether the text spells no control token of its own: encoded whole, it would become one."""
        return len(self._control.find(plain(chat.text))) == len(self._control.find(chat.text))

    def encode(self, chat: Marked) -> EncodedChat:
        """Ids and ranges of one conversation.

        Raises:
            BadRecord: If its text spells a control token.
        """
        if not self.can_encode(chat):
            raise BadRecord(
                "control token", "the text spells a control token, and this tokenizer would take it for one"
            )
        ids, offsets = self._offsets.encode(plain(chat.text), parses_control=True)

        def tokens(ranges: Ranges, *, outward: bool) -> Ranges:
            edges = [(len(plain(chat.text[:start])), len(plain(chat.text[:stop]))) for start, stop in ranges]
            return [
                (_token_of(offsets, a, up=not outward), _token_of(offsets, b, up=outward)) for a, b in edges if a < b
            ]

        return EncodedChat(
            ids=np.array(ids, np.int64),
            trained=_joined(tokens(chat.trained, outward=True)),
            thinking=_longest(tokens(chat.thinking, outward=False)),
        )


@dataclass
class _Segments:
    """Conversations cut at added tokens.

    Attributes:
        pieces: Texts to encode, in order.
        ids: Of each segment: its id, -1 for a piece.
    """

    pieces: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def cut(self, text: str, anchors: Ranges, id_of: dict[str, int]) -> list[int]:
        """Adds a conversation; gives the character at which each of its segments starts."""
        starts, at = [], 0
        for start, stop in [*anchors, (len(text), len(text))]:
            if start > at:
                starts.append(at)
                self.pieces.append(plain(text[at:start]))
                self.ids.append(-1)
            if stop > start:
                starts.append(start)
                self.ids.append(id_of[text[start:stop]])
            at = stop
        return starts


class SegmentEncoder:
    """Encodes conversations in batches, piece by piece."""

    def __init__(self, tokenizer: Tokenizer, offsets: Offsets, tokens: AddedTokens) -> None:
        self._tokenizer = tokenizer
        self._offsets = offsets
        self._ids = tokens.ids
        self._anchors = TokenFinder(list(tokens.ids))
        self._token_bytes = tokens.token_bytes

    def encode(self, chats: Sequence[Marked]) -> list[EncodedChat]:
        """Ids and ranges of each conversation."""
        segments = _Segments()
        firsts, starts = [0], []
        for chat in chats:
            starts.append(segments.cut(chat.text, self._anchors.find(chat.text), self._ids))
            firsts.append(len(segments.ids))
        ids, begins = self._encode(segments)
        encoded = []
        for number, chat in enumerate(chats):
            first = firsts[number]
            place = _Place(self, chat.text, starts[number], begins[first : firsts[number + 1] + 1], ids)
            base = place.begins[0]
            trained = [(place.token(a, up=False) - base, place.token(b, up=True) - base) for a, b in chat.trained]
            thinking = [(place.token(a, up=True) - base, place.token(b, up=False) - base) for a, b in chat.thinking]
            encoded.append(EncodedChat(ids[base : place.begins[-1]], _joined(trained), _longest(thinking)))
        return encoded

    def _encode(self, segments: _Segments) -> tuple[npt.NDArray[np.int64], list[int]]:
        """All ids in a row, and where each segment begins; a last entry is their number."""
        encoded = self._tokenizer.encode_batch(segments.pieces)
        given = np.array(segments.ids, np.int64)
        lengths = np.ones(len(given), np.int64)
        lengths[given < 0] = encoded.lengths
        ends = np.cumsum(lengths)
        is_token = np.repeat(given >= 0, lengths)
        ids = np.empty(len(is_token), np.int64)
        ids[is_token] = given[given >= 0]
        ids[~is_token] = encoded.ids
        return ids, [0, *ends.tolist()]

    def tokens_before(self, piece: str, head: str, ids: npt.NDArray[np.int64], *, up: bool) -> int:
        """How many of a piece's tokens stand before the character at which `head` ends.

        A character may be split over tokens: the first of them holds its start.
        """
        sizes = self._token_bytes[ids]
        ends = np.cumsum(sizes)
        if int(ends[-1]) != len(piece.encode()):
            return _token_of(self._offsets.encode(piece, parses_control=False)[1], len(head), up=up)
        at = len(head.encode())
        return int(np.searchsorted(ends - sizes, at) if up else np.searchsorted(ends, at, side="right"))


@dataclass(frozen=True)
class _Place:
    """Where the characters of one conversation are in the ids of a batch."""

    encoder: SegmentEncoder
    text: str
    starts: list[int]
    begins: list[int]
    ids: npt.NDArray[np.int64]

    def token(self, character: int, *, up: bool) -> int:
        """The token at a character; inside a token the token itself, or (`up`) the one after it."""
        segment = bisect_right(self.starts, character) - 1
        start = self.starts[segment]
        if character == start:
            return self.begins[segment]
        end = self.starts[segment + 1] if segment + 1 < len(self.starts) else len(self.text)
        if character == end:
            return self.begins[segment + 1]
        ids = self.ids[self.begins[segment] : self.begins[segment + 1]]
        piece, head = plain(self.text[start:end]), plain(self.text[start:character])
        return self.begins[segment] + self.encoder.tokens_before(piece, head, ids, up=up)
