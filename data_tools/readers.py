"""What every reader hands out: blocks of raw records, and why a record is refused.

A raw record is a line of JSON (`bytes`) or a row of Parquet (`dict`); `record_of` makes both a dict.

| reason            | what the record is |
|-------------------|--------------------|
| blank             | a line of white space |
| malformed         | not JSON, not UTF-8, a lone surrogate |
| not an object     | a JSON list, string or number |
| missing key       | it lacks a key that the first record of its file had |
| not a string      | the key holds null, a number, an object |
| bad conversation  | a turn of another form, or of an unknown speaker, or no answer of the assistant's |
| empty             | no text |
| no answer         | a filter asks for the answer's length, and nothing marks where the answer is |
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from data_tools.errors import DataError
from data_tools.manifest import SourceFile

Record = dict[str, Any]


class BadRecord(ValueError):
    """A record that gives no text.

    Attributes:
        reason: One of the reasons at the top of this file; counted in manifests.
        detail: What is wrong with this very record.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


Raw = bytes | Record | BadRecord
"""A record as it was read. A row of Parquet that is no UTF-8 is the `BadRecord` that `record_of` raises."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive records of a part.

    Attributes:
        first_row: Number of the first one, from 1, counted from the start of the part.
        records: As they were read.
        size: Bytes of the file on the disk that they took; the blocks of a whole file sum to its size.
    """

    first_row: int
    records: Sequence[Raw]
    size: int


@dataclass(frozen=True)
class Columns:
    """The keys of a record that an adapter reads.

    Attributes:
        required: Each stands for one that must be there, spelled in one of these ways.
        optional: Read where they are there.
    """

    required: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """All that is read."""
        return frozenset(self.optional).union(*self.required)

    def check(self, found: Collection[str], *, place: str) -> None:
        """Refuses a file of another schema.

        Args:
            found: Columns of a Parquet file, or keys of the first record of a JSONL file.
            place: For the message.

        Raises:
            DataError: If a required one is not there.
        """
        absent = [ways for ways in self.required if not any(name in found for name in ways)]
        if absent:
            wanted = ", ".join(" or ".join(f'"{name}"' for name in ways) for ways in absent)
            raise DataError(
                f"{place}: has no column {wanted}; it has: {', '.join(sorted(found)) or 'none'}; "
                "give the --adapter of this data set, or --key with the adapter text"
            )


class Reader(Protocol):
    """Reads one part of the inputs, once."""

    def blocks(self) -> Iterator[Block]:
        """The records, in order.

        Raises:
            DataError: If the file cannot be read to its end, naming the place.
        """

    def seen(self) -> SourceFile:
        """Path, and bytes on the disk and their sha256, once `blocks` is exhausted."""


def record_of(raw: Raw) -> Record:
    """The record as keys and values.

    Raises:
        BadRecord: If it has none.
    """
    if isinstance(raw, dict):
        return raw
    if isinstance(raw, BadRecord):
        raise raw
    if not raw or raw.isspace():
        raise BadRecord("blank", "the line is blank")
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRecord("malformed", f"{error.msg}, at column {error.colno}") from None
    if not isinstance(record, dict):
        raise BadRecord("not an object", f"the line is a {type(record).__name__}, not an object with keys")
    return record


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
