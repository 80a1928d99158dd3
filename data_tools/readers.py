"""JSON lines into text, a bounded block at a time, each bad line with its number and reason.

A file is read in blocks of whole lines, so memory is bounded by `BLOCK_BYTES` and the longest line.
The text of a record is the string under the key asked for, or a conversation in OpenThoughts3's
schema, rendered by `render_conversation`.

| reason            | what the line is |
|-------------------|------------------|
| blank             | only white space |
| malformed         | not JSON, not UTF-8, a lone surrogate |
| not an object     | a JSON list, string or number |
| missing key       | no such key, nor `conversations` |
| not a string      | the key holds null, a number, an object |
| bad conversation  | a turn that is no {from, value}, or of an unknown speaker |
| empty             | no text |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from data_tools.errors import DataError
from data_tools.manifest import SourceFile

READER_VERSION = "1"
"""Raised when the same record would give other text; recorded in every manifest."""

BLOCK_BYTES = 4 << 20
DEFAULT_KEY = "text"
CONVERSATIONS_KEY = "conversations"
SPEAKERS = frozenset({"system", "human", "user", "gpt", "assistant"})

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "Parquet",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
}


class BadRecord(ValueError):
    """A line that gives no text.

    Attributes:
        reason: One of the reasons at the top of this file; counted in manifests.
        detail: What is wrong with this very line.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Block:
    """Some consecutive whole lines of a file.

    Attributes:
        first_line: 1-based number of the first line.
        lines: The lines, without their ends.
        size: Bytes that the block took in the file.
    """

    first_line: int
    lines: list[bytes]
    size: int


@dataclass
class JsonLines:
    """One JSONL file; hashes what it hands out.

    Attributes:
        path: The file.
        block_bytes: Bytes that one block has at least, save the last.
    """

    path: Path
    block_bytes: int = BLOCK_BYTES
    _hash: Any = field(default_factory=hashlib.sha256, repr=False)
    _bytes: int = 0

    def blocks(self) -> Iterator[Block]:
        """The lines of the file, in order.

        Raises:
            DataError: If the file cannot be read or is packed.
        """
        line = 1
        try:
            with self.path.open("rb") as file:
                while raw := file.read(self.block_bytes):
                    if not raw.endswith(b"\n"):
                        raw += file.readline()
                    if line == 1:
                        self._refuse_packed(raw)
                    self._hash.update(raw)
                    self._bytes += len(raw)
                    lines = raw.removesuffix(b"\n").split(b"\n")
                    yield Block(first_line=line, lines=lines, size=len(raw))
                    line += len(lines)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None

    def _refuse_packed(self, start: bytes) -> None:
        kind = next((name for magic, name in _PACKED.items() if start.startswith(magic)), None)
        if kind:
            raise DataError(f"{self.path}: is {kind}, not JSON lines; unpack or convert it first")

    def seen(self) -> SourceFile:
        """Path, size and hash of what `blocks` has handed out so far."""
        return SourceFile(path=str(self.path), bytes=self._bytes, sha256=self._hash.hexdigest())


def hash_file(path: Path) -> SourceFile:
    """Path, size and sha256 of a file.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return SourceFile(path=str(path), bytes=file.tell(), sha256=digest)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def text_of_line(line: bytes, key: str) -> str:
    """The text of one JSON line.

    Args:
        line: The line, without its end.
        key: Key of the text. With the key `text`, a record that has none may have `conversations`.

    Raises:
        BadRecord: If it has no text.
    """
    if not line or line.isspace():
        raise BadRecord("blank", "the line is blank")
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadRecord("malformed", str(error)) from None
    if not isinstance(record, dict):
        raise BadRecord("not an object", f"the line is a {type(record).__name__}, not an object with keys")
    text = _value_text(_value(record, key), key)
    if not text:
        raise BadRecord("empty", f'the text under "{key}" is empty')
    return text


def _value(record: dict[str, Any], key: str) -> object:
    if key in record:
        return record[key]
    if key == DEFAULT_KEY and CONVERSATIONS_KEY in record:
        return record[CONVERSATIONS_KEY]
    raise BadRecord("missing key", f'no key "{key}"; keys: {", ".join(sorted(record)) or "none"}')


def _value_text(value: object, key: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return render_conversation(value)
    raise BadRecord("not a string", f'"{key}" is {"null" if value is None else type(value).__name__}, not a string')


def render_conversation(turns: list[Any]) -> str:
    r"""A conversation as the plain text that pretraining reads: what was said, a blank line between turns.

    No names of speakers and no chat markup: a pretraining document looks like a page that states a
    question and works it out. Traces keep their `<think>…</think>`.

    Args:
        turns: `{"from": "human" | "gpt" | …, "value": str}` each, as in OpenThoughts3.

    Raises:
        BadRecord: If a turn has another form, an unknown speaker or no text.

    >>> render_conversation([{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}])
    '1 + 1?\n\n2'
    """
    said = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise BadRecord("bad conversation", f"turn {number} is not of the form {{from, value}}")
        if turn.get("from") not in SPEAKERS:
            known = ", ".join(sorted(SPEAKERS))
            raise BadRecord("bad conversation", f"turn {number} is from {turn.get('from')!r}, none of {known}")
        if not turn["value"]:
            raise BadRecord("empty", f"turn {number} is empty")
        said.append(turn["value"])
    return "\n\n".join(said)


def texts(path: Path, key: str) -> Iterator[str]:
    """The text of every line of a file.

    Raises:
        DataError: At the first line without text, with `file:line`, reason and remedy.
    """
    for block in JsonLines(path).blocks():
        for offset, line in enumerate(block.lines):
            try:
                yield text_of_line(line, key)
            except BadRecord as error:
                raise DataError(f"{path}:{block.first_line + offset}: {error}; mend or remove the line") from None
