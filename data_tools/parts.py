"""Input files cut into parts, for several processes or machines to share.

A part is a whole file, or a byte range of a plain JSONL file that starts and ends at line starts. The
cut follows from the files and `part_bytes` alone: whoever makes it, on however many machines, makes
the same parts in the same order. Packed files, Parquet and stdin are never cut.

Worked example: a file of 1000-byte lines with part_bytes 2500 is cut at 3000, 5000, 8000, …: each
multiple of 2500 moves to the next line start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import UsageError
from data_tools.formats import STDIN, Format, opened

_COUNT_BYTES = 1 << 22
_LINE_BYTES = 1 << 16  # a cut reads this much: each of many tasks makes all cuts


@dataclass(frozen=True)
class InputFile:
    """One file that is to be read.

    Attributes:
        path: The file; `-` is stdin.
        format: What it is by its content.
        size: Bytes on the disk; 0 for stdin.
    """

    path: Path
    format: Format
    size: int


@dataclass(frozen=True)
class Part:
    """Some consecutive records of one file.

    Attributes:
        file: The file.
        start: First byte.
        end: Byte after the last one; None: the end of the file, wherever that is.
    """

    file: InputFile
    start: int = 0
    end: int | None = None

    @property
    def size(self) -> int:
        """Bytes on the disk; 0 for stdin."""
        return (self.file.size if self.end is None else self.end) - self.start


def split_inputs(files: Iterable[InputFile], *, part_bytes: int | None = None) -> list[Part]:
    """The parts of some files, in order.

    Args:
        files: As from `find_inputs`.
        part_bytes: Bytes of one part of a plain JSONL file, up to the next line start; None: whole files.

    Raises:
        DataError: If a file cannot be read.
    """
    parts: list[Part] = []
    for file in files:
        if part_bytes is None or file.format != "jsonl" or file.path == STDIN or file.size <= part_bytes:
            parts.append(Part(file))
            continue
        cuts = list(_line_starts(file, part_bytes))
        parts += [Part(file, start, end) for start, end in zip([0, *cuts], [*cuts, file.size], strict=True)]
    return parts


def _line_starts(file: InputFile, part_bytes: int) -> Iterator[int]:
    """Where the parts after the first start; a line longer than a part swallows the cuts inside it."""
    last = 0
    for aim in range(part_bytes, file.size, part_bytes):
        if aim <= last:
            continue
        last = _next_line_start(file, aim)
        if last >= file.size:
            return
        yield last


def _next_line_start(file: InputFile, aim: int) -> int:
    """The first line start at or after byte `aim`, or the file's size."""
    position = aim - 1
    with opened(file.path, start=position) as raw:
        while chunk := raw.read(_LINE_BYTES):
            found = chunk.find(b"\n")
            if found >= 0:
                return position + found + 1
            position += len(chunk)
    return file.size


def parts_of_task(parts: Sequence[Part], *, task: int, num_tasks: int) -> list[tuple[int, Part]]:
    """The parts that one of several tasks reads, each with its number; together the tasks read all, each once.

    Args:
        parts: All of them, the same list in every task.
        task: Number of this task, from 0.
        num_tasks: How many share the parts.

    Raises:
        UsageError: If there is no such task.
    """
    if not 0 <= task < num_tasks:
        raise UsageError(f"--task: {task}/{num_tasks}: tasks are numbered 0 to {num_tasks - 1}")
    return list(enumerate(parts))[task::num_tasks]


def rows_before(part: Part) -> int:
    """Lines of the file before the part: 0 for a whole file, else they are counted by reading up to it.

    Block.first_row counts from the part's start; this added to it is the line's number in the file.

    Raises:
        DataError: If the file cannot be read.
    """
    if not part.start:
        return 0
    with opened(part.file.path, limit=part.start) as raw:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: raw.read(_COUNT_BYTES), b""))


def place_of(part: Part, row: int) -> str:
    """`file:row` of a record, for messages; row counts from 1 at the part's start, the place from the file's."""
    name: Path | str = "stdin" if part.file.path == STDIN else part.file.path
    return f"{name}:{rows_before(part) + row}"
