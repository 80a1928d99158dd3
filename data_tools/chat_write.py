"""Conversations, one after the other, into partial files: the part of `chat` that takes the time.

Ids are made piece by piece where the tokenizer allows it. The first `CHECK_FIRST` conversations of a job,
and one in `CHECK_EVERY` after them, are made a second time from the whole text: ids and masks must be
equal, or the job ends. Conversations whose text spells a control token cannot be compared (the whole text
would turn it into one); with a tokenizer that must see whole texts they are rejected.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson

from data_tools.adapters.adapter import FileAdapter
from data_tools.chat_encode import EncodedChat, Marked, Offsets, SegmentEncoder, WholeEncoder, added_tokens
from data_tools.chat_template import ChatTemplate, special_tokens
from data_tools.errors import DataError
from data_tools.indexed import IndexedWriter, WrittenPair, dtype_for
from data_tools.loss_mask import LossMasks
from data_tools.parts import Part, place_of
from data_tools.readers import BadRecord, Raw
from data_tools.records import Conversation
from data_tools.speech import Thinking, marked, messages_of, tools_of
from data_tools.tokenizer import Tokenizer

CHECK_FIRST = 8
CHECK_EVERY = 1_000
_BATCH_CHARACTERS = 1 << 21


@dataclass(frozen=True)
class ChatFiles:
    """The files of a dataset of conversations, its manifest left out."""

    bin: Path
    idx: Path
    mask: Path
    rejects: Path

    @property
    def data(self) -> tuple[Path, Path, Path]:
        """Those that hold the data."""
        return self.bin, self.idx, self.mask

    @property
    def all(self) -> tuple[Path, Path, Path, Path]:
        """All four."""
        return *self.data, self.rejects


class ChatMaker:
    """Makes ids and ranges of conversations, and can make them a second way."""

    def __init__(self, tokenizer: Path, *, template: str, thinking: Thinking, train_on: frozenset[str]) -> None:
        """Loads what is needed.

        Args:
            tokenizer: A tokenizer folder.
            template: The chat template.
            thinking: Which traces stay.
            train_on: Some of `speech.TRAINABLE`.

        Raises:
            DataError: If the tokenizer or the template cannot be read.
        """
        self.tokenizer = Tokenizer.load(tokenizer)
        tokens = added_tokens(tokenizer)
        self.uses_segments = tokens.segments_are_safe
        self._thinking, self._train_on = thinking, train_on
        self._template = ChatTemplate(template, control_tokens=tokens.control, variables=special_tokens(tokenizer))
        offsets = Offsets(self.tokenizer)
        self._whole = WholeEncoder(offsets, tokens)
        self._segments = SegmentEncoder(self.tokenizer, offsets, tokens)

    def mark(self, conversation: Conversation) -> Marked:
        """Renders a conversation.

        Raises:
            BadRecord: If it cannot be rendered or encoded, or nothing of it is trained on.
        """
        messages = messages_of(conversation, thinking=self._thinking)
        rendered = self._template.render(messages, tools_of(conversation))
        chat = marked(rendered, conversation, train_on=self._train_on)
        if not self.uses_segments and not self.can_check(chat):
            raise BadRecord(
                "control token", "the text spells a control token, and this tokenizer would take it for one"
            )
        return chat

    def can_check(self, chat: Marked) -> bool:
        """Whether a conversation may be encoded whole."""
        return self._whole.can_encode(chat)

    def encode(self, chats: list[Marked]) -> list[EncodedChat]:
        """Ids and ranges of each conversation, the fast way if that is safe."""
        return self._segments.encode(chats) if self.uses_segments else [self.encode_whole(chat) for chat in chats]

    def encode_whole(self, chat: Marked) -> EncodedChat:
        """Ids and ranges of one conversation, the slow way."""
        return self._whole.encode(chat)


class ChatWriter:
    """One job while it runs: open partial files and counts.

    As a context manager it removes the partial files when the job fails.

    Attributes:
        rejected: Records that gave no conversation, by reason.
    """

    def __init__(self, maker: ChatMaker, partial: ChatFiles, *, skips_bad_records: bool) -> None:
        """Opens the partial files."""
        self.rejected: Counter[str] = Counter()
        self._maker = maker
        self._partial = partial
        self._skips = skips_bad_records
        self._waiting: list[tuple[Marked, Part, int]] = []
        self._characters = 0
        self._written = self._checked = 0
        self._run_counts: list[npt.NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._runs: list[npt.NDArray[np.int32]] = []
        self._thinking: list[npt.NDArray[np.int32]] = []
        partial.rejects.parent.mkdir(parents=True, exist_ok=True)
        self._writer = IndexedWriter(partial.bin, dtype=dtype_for(maker.tokenizer.vocab_size))
        self._rejects = partial.rejects.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rejects.close()
        self._writer.close()
        if error is not None:
            for path in self._partial.all:
                path.unlink(missing_ok=True)

    def add(self, raw: Raw, convert: FileAdapter, part: Part, row: int) -> None:
        """Takes the conversation of one record.

        Args:
            raw: The record.
            convert: Makes a conversation of it.
            part: Where it stands, for messages.
            row: Its number in the part, from 1.

        Raises:
            DataError: If it has none and bad records are not skipped, or a check fails.
        """
        try:
            item = convert(raw)
            if not isinstance(item, Conversation):
                raise BadRecord("no conversation", "the record is a text without turns; tokenize takes it")
            chat = self._maker.mark(item)
        except BadRecord as error:
            self._reject(error, part, row)
            return
        self._waiting.append((chat, part, row))
        self._characters += len(chat.text)
        if self._characters >= _BATCH_CHARACTERS:
            self._encode()

    def _reject(self, error: BadRecord, part: Part, row: int) -> None:
        if not self._skips:
            raise DataError(
                f"{place_of(part, row)}: {error}; mend the record, or give --on-error skip to leave out such records "
                "and list them"
            )
        self.rejected[error.reason] += 1
        fields = {"file": str(part.file.path), "line": row, "reason": error.reason, "detail": error.detail}
        self._rejects.write(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))

    def _encode(self) -> None:
        waiting, self._waiting, self._characters = self._waiting, [], 0
        if not waiting:
            return
        encoded = self._maker.encode([chat for chat, _, _ in waiting])
        for (chat, part, row), made in zip(waiting, encoded, strict=True):
            if self._maker.uses_segments and (self._written < CHECK_FIRST or self._written % CHECK_EVERY == 0):
                self._check(chat, made, part, row)
            self._written += 1
        self._run_counts.append(np.array([len(made.trained) for made in encoded], np.int64))
        self._runs.append(np.array([run for made in encoded for run in made.trained], np.int32))
        self._thinking.append(np.array([made.thinking for made in encoded], np.int32))
        lengths = np.array([len(made.ids) for made in encoded], np.int64)
        self._writer.add_documents(np.concatenate([made.ids for made in encoded]), lengths)

    def _check(self, chat: Marked, made: EncodedChat, part: Part, row: int) -> None:
        if not self._maker.can_check(chat):
            return
        self._checked += 1
        whole = self._maker.encode_whole(chat)
        if np.array_equal(whole.ids, made.ids) and (whole.trained, whole.thinking) == (made.trained, made.thinking):
            return
        size = min(len(whole.ids), len(made.ids))
        differ = np.flatnonzero(whole.ids[:size] != made.ids[:size])
        raise DataError(
            f"{place_of(part, row)}: encoded by pieces and as a whole it differs"
            f"{f' from token {differ[0]:,} on' if len(differ) else ': trained tokens'}: "
            f"whole {len(whole.ids):,} tokens, trained {whole.trained[:4]}; "
            f"pieces {len(made.ids):,} tokens, trained {made.trained[:4]}; "
            "nothing was written; please report the tokenizer and this record"
        )

    def finish(self, *, files: str) -> tuple[WrittenPair, dict[str, Any]]:
        """Completes the partial files.

        Args:
            files: The inputs, for the message.

        Returns:
            The pair, and what was found out about the conversations, with the names of `manifest.ChatRecord`.

        Raises:
            DataError: If no record had a conversation, or a check fails.
        """
        self._encode()
        pair = self._writer.finish(self._partial.idx)
        if not self._written:
            raise DataError(
                f"{files}: no conversation ({self.rejected.total():,} records rejected); nothing was written"
            )
        masks = LossMasks(
            first_run=np.cumsum(np.concatenate(self._run_counts)),
            thinking=np.concatenate(self._thinking),
            runs=np.concatenate(self._runs),
        )
        content = masks.to_bytes()
        with self._partial.mask.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return pair, {
            "trained_tokens": int((masks.runs[:, 1] - masks.runs[:, 0]).sum(dtype=np.int64)),
            "mask_bytes": len(content),
            "mask_sha256": hashlib.sha256(content).hexdigest(),
            "encoded_by": "segments" if self._maker.uses_segments else "whole",
            "checked": self._checked,
        }
