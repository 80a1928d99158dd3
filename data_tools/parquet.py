"""Parquet in small batches of rows, with only the columns that are wanted.

Row groups may be larger than memory (262,144 rows of 4.7 GB exist), so columns are streamed page by
page and decoded `BATCH_ROWS` rows at a time. Text that is no UTF-8 makes its own row bad, not its batch.

The sha256 is of the whole file, read once more for it, columns that nobody wanted included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data_tools.errors import DataError, SetupError
from data_tools.file_state import hash_part, source_of, state_of
from data_tools.manifest import SourceFile
from data_tools.parts import Part
from data_tools.readers import BadRecord, Block, Columns, Raw

BATCH_ROWS = 256
_STREAM_BYTES = 1 << 20
"""Of each column held in memory at once, beside the page that is decoded."""


@dataclass
class ParquetRows:
    """Reads a Parquet file, once.

    Attributes:
        part: A whole file.
        columns: What to read; None: every column.
        batch_rows: Rows of one block at most.
    """

    part: Part
    columns: Columns | None = None
    batch_rows: int = BATCH_ROWS
    _seen: SourceFile | None = field(default=None, init=False, repr=False)

    def blocks(self) -> Iterator[Block]:
        """The rows as dicts, in order.

        Raises:
            DataError: If the file cannot be read, is damaged, changes meanwhile, or lacks a required column.
            SetupError: If pyarrow is not installed.
        """
        pyarrow, parquet = _pyarrow()
        path, row = self.part.file.path, 1
        before = state_of(path)
        try:
            with parquet.ParquetFile(path, pre_buffer=False, buffer_size=_STREAM_BYTES) as file:
                for block in self._blocks(file):
                    yield block
                    row += len(block.records)
        except (pyarrow.ArrowException, OSError) as error:
            said = str(error).splitlines()[0]
            raise DataError(f"{path}:{row}: damaged Parquet at or after this row: {said}; copy it again") from None
        self._seen = source_of(self.part, before, size=self.part.size, sha256=hash_part(self.part))

    def _blocks(self, file: Any) -> Iterator[Block]:
        path, rows, done = self.part.file.path, file.metadata.num_rows, 0
        batches = file.iter_batches(self.batch_rows, columns=self._wanted(file.schema_arrow.names), use_threads=False)
        for batch in batches:
            size = self.part.size * (done + batch.num_rows) // rows - self.part.size * done // rows
            yield Block(first_row=done + 1, records=_records(batch), size=size)
            done += batch.num_rows
        if done != rows:
            raise DataError(f"{path}:{done}: the rows end here, its footer says {rows:,}; copy it again")

    def _wanted(self, found: list[str]) -> list[str] | None:
        if self.columns is None:
            return None
        self.columns.check(found, place=str(self.part.file.path))
        return [name for name in found if name in self.columns.names]

    def seen(self) -> SourceFile:
        """Path, size and sha256 of the file."""
        assert self._seen, "blocks() comes first, to its end"
        return self._seen


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise SetupError(
            "pyarrow is not installed, and Parquet is read with it: pip install 'megatron-ext[parquet]'"
        ) from None
    return pyarrow, pyarrow.parquet


def _records(batch: Any) -> list[Raw]:
    try:
        records: list[Raw] = batch.to_pylist()
    except UnicodeDecodeError:
        return [_record(batch.slice(row, 1)) for row in range(batch.num_rows)]
    return records


def _record(row: Any) -> Raw:
    try:
        record: Raw = row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRecord("malformed", f"the row is not UTF-8: {error}")
    return record
