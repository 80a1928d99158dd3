"""JSONL, plain or packed, in blocks of whole lines.

Memory is bounded by `BLOCK_BYTES` and the longest line, and no line may be longer than
`LONGEST_LINE_BYTES`. Lines end with LF or CRLF; the last needs no end; a UTF-8 byte order mark at the
start of the file is no part of its first line. A blank line is a record (a bad one), so rows are line
numbers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_tools.errors import DataError
from data_tools.file_state import source_of, state_of
from data_tools.formats import HashedFile, opened, unpacked
from data_tools.manifest import SourceFile
from data_tools.parts import Part, place_of
from data_tools.readers import Block

BLOCK_BYTES = 1 << 20
"""Of 1, 2 and 4 MiB the smallest took the least CPU time and memory: its buffers are used again and again."""
LONGEST_LINE_BYTES = 1 << 30

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass
class JsonLines:
    """Reads a part of a JSONL file, once.

    Attributes:
        part: What to read.
        block_bytes: Bytes of text that one block has at least, save the last.
    """

    part: Part
    block_bytes: int = BLOCK_BYTES
    _seen: SourceFile | None = field(default=None, init=False, repr=False)

    def blocks(self) -> Iterator[Block]:
        """The lines without their LF, in order.

        Raises:
            DataError: If the file cannot be read, is damaged or changed meanwhile, or a line is too long.
            SetupError: If the library that unpacks it is not installed.
        """
        part, path = self.part, self.part.file.path
        limit = None if part.end is None else part.end - part.start
        before = state_of(path)
        with opened(path, start=part.start, limit=limit) as raw:
            yield from self._blocks(raw, unpacked(raw, path, part.file.format))
            if limit is not None and raw.bytes_read < limit:
                raise DataError(f"{path}: became shorter while it was read; run the command again")
            self._seen = source_of(part, before, size=raw.bytes_read, sha256=raw.sha256)

    def _blocks(self, raw: HashedFile, text: io.BufferedReader) -> Iterator[Block]:
        row, size_before = 1, 0
        while content := text.read(self.block_bytes):
            if not content.endswith(b"\n"):
                content += text.readline(LONGEST_LINE_BYTES)
                self._refuse_long_line(content, row)
            if row == 1 and not self.part.start:
                content = content.removeprefix(_BYTE_ORDER_MARK)
            lines = content.removesuffix(b"\n").split(b"\n")
            yield Block(first_row=row, records=lines, size=raw.bytes_read - size_before)
            row, size_before = row + len(lines), raw.bytes_read

    def _refuse_long_line(self, content: bytes, row: int) -> None:
        if len(content) < LONGEST_LINE_BYTES or content.endswith(b"\n"):
            return
        if len(content) - content.rfind(b"\n") > LONGEST_LINE_BYTES:
            last = row + content.count(b"\n")
            raise DataError(
                f"{place_of(self.part, last)}: a line of over {LONGEST_LINE_BYTES:,} bytes; is the file JSON lines?"
            )

    def seen(self) -> SourceFile:
        """Path, and bytes on the disk and their sha256, of all that was read."""
        assert self._seen, "blocks() comes first, to its end"
        return self._seen
