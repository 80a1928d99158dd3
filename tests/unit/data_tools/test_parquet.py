"""Parquet in small batches of rows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.errors import DataError
from data_tools.parquet import ParquetRows
from data_tools.parts import InputFile, Part
from data_tools.readers import BadRecord, Columns

ROWS = [{"id": number, "text": f"text {number}", "unread": "x" * 50} for number in range(10)]


def write(path: Path, **options: int) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), path, **options)
    return path


def reader(path: Path, columns: Columns | None = None, batch_rows: int = 4) -> ParquetRows:
    return ParquetRows(Part(InputFile(path, "parquet", path.stat().st_size)), columns, batch_rows)


def test_batches_are_small_and_numbered_whatever_the_row_groups(tmp_path: Path) -> None:
    for row_group_size in (1000, 3):
        source = reader(write(tmp_path / "a.parquet", row_group_size=row_group_size))
        blocks = list(source.blocks())
        assert max(len(block.records) for block in blocks) <= 4
        assert [record for block in blocks for record in block.records] == ROWS
        assert [block.first_row + offset for block in blocks for offset in range(len(block.records))] == list(
            range(1, 11)
        )


def test_sizes_sum_to_the_file_and_the_hash_is_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    source = reader(path, Columns(required=(("text",),)))
    assert sum(block.size for block in source.blocks()) == path.stat().st_size == source.seen().bytes
    assert source.seen().sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_the_wanted_columns_are_read(tmp_path: Path) -> None:
    source = reader(write(tmp_path / "a.parquet"), Columns(required=(("text", "body"),), optional=("id", "uuid")))
    assert next(source.blocks()).records[0] == {"id": 0, "text": "text 0"}


def test_a_column_may_have_a_dot_in_its_name_or_be_nested(tmp_path: Path) -> None:
    pq.write_table(pa.table({"metadata.category": ["a"], "text": ["b"], "turns": [[{"from": "c"}]]}), tmp_path / "a")
    columns = Columns(required=(("metadata.category",), ("turns",)))
    assert next(reader(tmp_path / "a", columns).blocks()).records == [
        {"metadata.category": "a", "turns": [{"from": "c"}]}
    ]


def test_a_column_that_is_not_there_is_named_with_all_that_are(tmp_path: Path) -> None:
    source = reader(write(tmp_path / "a.parquet"), Columns(required=(("body",),)))
    with pytest.raises(DataError, match=r'a\.parquet: has no column "body"; it has: id, text, unread; '):
        list(source.blocks())


def test_a_row_that_is_no_utf8_is_bad_alone(tmp_path: Path) -> None:
    raw = pa.array([b"a", b"\xff", b"\xed\xa0\x80", b"d"]).view(pa.string())
    pq.write_table(pa.table({"text": raw}), tmp_path / "a.parquet")
    records = next(reader(tmp_path / "a.parquet").blocks()).records
    assert (records[0], records[3]) == ({"text": "a"}, {"text": "d"})
    assert [record.reason for record in records[1:3] if isinstance(record, BadRecord)] == ["malformed", "malformed"]


def test_no_rows_are_no_records(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert list(reader(tmp_path / "a.parquet").blocks()) == []


@pytest.mark.parametrize("cut", [1, 8, 400])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"a\.parquet:1: damaged Parquet at or after this row: .*; copy it again"):
        list(reader(path).blocks())


def test_a_damaged_page_is_refused_with_the_row_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [hashlib.sha256(b"%d" % number).hexdigest() for number in range(1000)]})
    pq.write_table(table, path, row_group_size=100, use_dictionary=False, compression="zstd")
    content = bytearray(path.read_bytes())
    offset = pq.ParquetFile(path).metadata.row_group(5).column(0).data_page_offset
    content[offset + 40 : offset + 400] = b"\x00" * 360
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet:501: damaged Parquet at or after this row"):
        list(reader(path, batch_rows=100).blocks())


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    blocks = reader(path).blocks()
    next(blocks)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"a\.parquet: was changed while it was read|damaged"):
        list(blocks)
