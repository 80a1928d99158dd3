"""Conversations into ids, masks and origins, a block at a time: the part of `chat` that takes the time.

The first conversations of a job, `CHECK_FIRST` unless they are very long, and one in `CHECK_EVERY` after
them are made a second time, rendered each by itself (see `chat_shapes.py`) and encoded by `tokenizers`, with
its offsets: texts, ids and masks must be equal, or the job ends.
Conversations whose text spells a control token cannot be compared: the whole text would turn it into one; those
of over `LONGEST_CHECKED` characters are not, for the memory that it takes. The next one is compared in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_tools.adapters.adapter import FileAdapter
from data_tools.bpe import Encoded
from data_tools.chat_encode import BatchEncoder, EncodedChats, Marked, PieceEncoder, WholeEncoder, added_tokens
from data_tools.chat_shapes import Shapes
from data_tools.chat_template import ChatTemplate, Rendered, holds_marks, strings_of
from data_tools.chat_template_files import special_tokens
from data_tools.dataset_writer import Batch, WrittenDataset
from data_tools.encode import BlockEncoder, Read
from data_tools.errors import DataError
from data_tools.loss_mask import LossMasks
from data_tools.manifest import CHAT_VERSION, ChatRecord
from data_tools.origin import origins_of
from data_tools.parts import Part
from data_tools.readers import BadRecord, Raw
from data_tools.records import Conversation, Thinking
from data_tools.speech import contents_of, marked, messages_of, refuse_disorder, tools_of
from data_tools.tokenizer import Tokenizer, tokenizer_file

CHECK_FIRST = 8
CHECK_EVERY = 1_000
LONGEST_CHECKED = 1_000_000
"""`tokenizers` takes about 170 bytes of memory a character, and 1.2 s for so many."""
_FIRST_CHARACTERS = 50_000
"""`tokenizers` takes 0.1 s for so many."""


class Chat(NamedTuple):
    """A conversation on its way.

    Attributes:
        conversation: As it was read.
        marked: As it was rendered.
        strings: What it says, without the template's words.
    """

    conversation: Conversation
    marked: Marked
    strings: Sequence[str]


class ChatMaker:
    """Makes ids and masks of conversations, and can make them a second way."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        folder: Path,
        template: str,
        thinking: Thinking = "keep",
        train_on: frozenset[str],
        rejects_control: bool = False,
    ) -> None:
        """Compiles the template.

        Args:
            tokenizer: Loaded so that it parses control tokens.
            folder: Where it came from; names its tokens for the template.
            template: The chat template.
            thinking: Which traces stay.
            train_on: Some of `speech.TRAINABLE`.
            rejects_control: Whether text that spells a control token is refused.

        Raises:
            DataError: If the template cannot be read.
        """
        self._tokens = added_tokens(tokenizer)
        self.is_exact = self._tokens.is_exact
        self._thinking, self._train_on = thinking, train_on
        self._rejects_control = rejects_control
        named = special_tokens(folder)
        self._template = ChatTemplate(template, control_tokens=self._tokens.control, variables=named)
        self._shapes = Shapes(template, control_tokens=self._tokens.control, variables=named)
        self._batch = BatchEncoder(tokenizer, self._tokens)
        self._whole = WholeEncoder(tokenizer, self._tokens)
        self._pieces = PieceEncoder(tokenizer, self._tokens)
        self._control_of = {self._tokens.ids[token]: token for token in self._tokens.control}

    def make(self, conversation: Conversation) -> Chat:
        """Renders a conversation.

        Raises:
            BadRecord: If its roles are out of order, it cannot be rendered, or nothing of it is trained on.
        """
        refuse_disorder(conversation)
        roles, _, calls = zip(*conversation.turns, strict=True)
        contents = contents_of(conversation, thinking=self._thinking)
        strings = contents
        if conversation.tools or any(calls):
            messages, tools = messages_of(conversation, thinking=self._thinking), tools_of(conversation)
            strings = tuple(strings_of([messages, tools]))
        elif self.is_exact and all(contents) and (shape := self._shapes.of(roles)):
            filled = shape.filled(contents)
            if not holds_marks(filled.text):
                return Chat(conversation, self._marked(conversation, filled, protects=False), contents)
        return Chat(conversation, self._rendered(conversation, protects=any(map(holds_marks, strings))), strings)

    def _rendered(self, conversation: Conversation, *, protects: bool) -> Marked:
        messages, tools = messages_of(conversation, thinking=self._thinking), tools_of(conversation)
        rendered = self._template.render(messages, tools, protects=protects)
        return self._marked(conversation, rendered, protects=protects)

    def _marked(self, conversation: Conversation, rendered: Rendered, *, protects: bool) -> Marked:
        return marked(rendered, conversation, train_on=self._train_on, is_protected=protects)

    def encode(self, chats: Sequence[Chat]) -> tuple[EncodedChats, dict[int, BadRecord]]:
        """Ids and masks of conversations; of those that are refused, by number, nothing is right.

        Args:
            chats: At least one.
        """
        if not self.is_exact:
            return self._all_whole(chats)
        encoded, is_right = self._batch.encode([chat.marked for chat in chats])
        spelling = self._spelling(chats, encoded.documents)
        slow = sorted(spelling.union(np.flatnonzero(~is_right).tolist()))
        if not slow:
            return encoded, {}
        parts = {number: encoded.one(number) for number in set(range(len(chats))).difference(slow)}
        refused = {}
        for number in slow:
            if self._rejects_control and self._spells(chats[number]):
                refused[number] = _spelled("--special-tokens reject leaves it out")
                parts[number] = _none()
            else:
                parts[number] = self._slowly(chats[number], spells=number in spelling)
        return EncodedChats.joined([parts[number] for number in range(len(chats))]), refused

    def _all_whole(self, chats: Sequence[Chat]) -> tuple[EncodedChats, dict[int, BadRecord]]:
        refused = {
            number: _spelled("this tokenizer must see whole texts, so it would take it for one")
            for number, chat in enumerate(chats)
            if self._spells(chat)
        }
        parts = [_none() if number in refused else self._whole.encode(chat.marked) for number, chat in enumerate(chats)]
        return EncodedChats.joined(parts), refused

    def _slowly(self, chat: Chat, *, spells: bool) -> EncodedChats:
        if not spells and self._whole.can_encode(chat.marked):
            return self._whole.encode(chat.marked)
        return self._pieces.encode(self._rendered(chat.conversation, protects=True))

    def _spelling(self, chats: Sequence[Chat], documents: Encoded) -> set[int]:
        """Those that spell a control token themselves; only a token that is in the ids can be spelled."""
        tokens = [self._control_of[number] for number in self._tokens.control_in(documents.ids)]
        return {
            number for number, chat in enumerate(chats) for said in chat.strings for token in tokens if token in said
        }

    def _spells(self, chat: Chat) -> bool:
        return any(token in said for said in chat.strings for token in self._tokens.control)

    def can_check(self, chat: Chat) -> bool:
        """Whether a conversation may be encoded whole, and was not."""
        return self.is_exact and not self._spells(chat)

    def encode_whole(self, chat: Chat) -> EncodedChats:
        """Ids and ranges of one conversation, the slow way."""
        return self._whole.encode(chat.marked)

    def is_as_rendered(self, chat: Chat) -> bool:
        """Whether a conversation that took the shape of another is what the template makes of it."""
        return self._rendered(chat.conversation, protects=chat.marked.is_protected) == chat.marked


def _spelled(why: str) -> BadRecord:
    return BadRecord("control token", f"the text spells a control token; {why}")


def _none() -> EncodedChats:
    """Stands for a conversation that is refused."""
    masks = LossMasks(np.zeros(2, np.int64), np.zeros((1, 2), np.int32), np.zeros((0, 2), np.int32))
    return EncodedChats(Encoded(np.zeros(0, np.uint32), np.zeros(1, np.int64)), masks, np.zeros(1, np.int64))


class ChatEncoder(BlockEncoder):
    """Conversations, with a mask beside the ids."""

    def __init__(self, tokenizer: Tokenizer, job: Any, *, total_bytes: int) -> None:
        """As in `BlockEncoder`."""
        self._maker = ChatMaker(
            tokenizer,
            folder=tokenizer_file(job.tokenizer).parent,
            template=job.template,
            thinking=job.thinking,
            train_on=job.train_on,
            rejects_control=job.special_tokens == "reject",
        )
        self._seen = self._checked = self._characters = 0
        self._owes_check = False
        super().__init__(tokenizer, job, total_bytes=total_bytes)

    def item_of(self, raw: Raw, convert: FileAdapter, part: Part, row: int) -> Chat:
        """The conversation of a record, rendered."""
        item = convert(raw)
        if not isinstance(item, Conversation):
            raise BadRecord("no conversation", "the record is a text without turns; tokenize takes it")
        return self._maker.make(item)

    def encode(self, read: Read) -> Batch | None:
        """As in `BlockEncoder`."""
        chats: list[Chat] = read.items
        if not chats:
            return None
        encoded, refused = self._maker.encode(chats)
        for number, error in refused.items():
            self.rejects.add(read.part, read.rows[number], error)
        self._check_some(chats, encoded, read)
        origins = origins_of([chat.conversation for chat in chats], read.rows, source=read.source)
        origins["answer_tokens"] = encoded.answer_tokens
        keep = np.array([number not in refused for number in range(len(chats))])
        keep = self.selected(read, encoded.documents, origins, keep)
        batch = Batch(encoded.documents, origins, encoded.masks)
        return batch if keep.all() else batch.chosen(keep)

    def _check_some(self, chats: Sequence[Chat], encoded: EncodedChats, read: Read) -> None:
        for number, chat in enumerate(chats):
            is_early = self._seen < CHECK_FIRST and self._characters < _FIRST_CHARACTERS
            self._owes_check |= is_early or self._seen % CHECK_EVERY == 0
            self._seen += 1
            if self._owes_check and len(chat.marked.text) <= LONGEST_CHECKED and self._maker.can_check(chat):
                self._owes_check = False
                self._checked += 1
                self._characters += len(chat.marked.text)
                if not self._maker.is_as_rendered(chat):
                    raise DataError(
                        f"{read.place(number)}: rendered by itself it differs from what the shape of its conversation "
                        "makes of it; nothing was written; please report the chat template and this record"
                    )
                whole = self._maker.encode_whole(chat)
                made = encoded.one(number)
                if not whole.equals(made):
                    raise DataError(f"{read.place(number)}: {_difference(whole, made)}")

    def record(self, written: WrittenDataset) -> dict[str, Any]:
        """As in `BlockEncoder`."""
        job = self.job
        return {
            "append_eod": False,
            "text_key": "",
            "engine": self.engine_record(compared=self._checked),
            "chat": ChatRecord(
                version=CHAT_VERSION,
                template=job.template_path.name,
                template_sha256=job.template_sha256,
                template_tokens=job.template_tokens,
                train_on=sorted(job.train_on),
                thinking=job.thinking,
                trained_tokens=written.trained_tokens,
                mask_bytes=written.mask_bytes,
                mask_sha256=written.mask_sha256,
            ),
        }


def _difference(whole: EncodedChats, made: EncodedChats) -> str:
    ids, expected = made.documents.ids, whole.documents.ids
    size = min(len(ids), len(expected))
    differ = np.flatnonzero(ids[:size] != expected[:size])
    return (
        "encoded in a batch and by tokenizers as a whole it differs"
        f"{f' from token {differ[0]:,} on' if len(differ) else ': trained tokens'}: "
        f"whole {len(expected):,} tokens, trained {whole.masks.runs[:4].tolist()}; "
        f"in a batch {len(ids):,} tokens, trained {made.masks.runs[:4].tolist()}; "
        "nothing was written; give --bpe tokenizers, and please report the tokenizer and this record"
    )
