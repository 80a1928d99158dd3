"""The .bin/.idx pair, byte by byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import DataError
from data_tools.indexed import IndexedReader, IndexedWriter, dtype_for

DOCUMENTS = [[1, 2, 3, 4, 5], [6], [7, 1, 2, 3, 4, 5, 0]]


def write_pair(prefix: Path, *, dtype: str = "uint16") -> None:
    """The three documents, added as a batch of two and a batch of one."""
    writer = IndexedWriter(Path(f"{prefix}.bin"), dtype=dtype)  # type: ignore[arg-type]
    writer.add_documents(np.array(DOCUMENTS[0] + DOCUMENTS[1]), np.array([5, 1]))
    writer.add_documents(np.array(DOCUMENTS[2]), np.array([7]))
    writer.finish(Path(f"{prefix}.idx"))


def test_the_bin_file_is_the_ids_one_after_the_other(tmp_path: Path) -> None:
    write_pair(tmp_path / "a")
    ids = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 0]
    assert (tmp_path / "a.bin").read_bytes() == b"".join(number.to_bytes(2, "little") for number in ids)


def test_the_idx_file_is_the_documented_bytes(tmp_path: Path) -> None:
    write_pair(tmp_path / "a")
    header = (
        b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") + b"\x08" + (3).to_bytes(8, "little") + (4).to_bytes(8, "little")
    )
    lengths = b"".join(number.to_bytes(4, "little") for number in (5, 1, 7))
    pointers = b"".join(number.to_bytes(8, "little") for number in (0, 10, 12))
    documents = b"".join(number.to_bytes(8, "little") for number in (0, 1, 2, 3))
    assert (tmp_path / "a.idx").read_bytes() == header + lengths + pointers + documents
    assert (tmp_path / "a.idx").stat().st_size == 102


def test_the_writer_reports_what_it_wrote(tmp_path: Path) -> None:
    writer = IndexedWriter(tmp_path / "a.bin", dtype="int32")
    writer.add_documents(np.array([5, 70_000, 3]), np.array([1, 2]))
    pair = writer.finish(tmp_path / "a.idx")
    assert pair.lengths.tolist() == [1, 2]
    assert (pair.max_token_id, pair.bin_bytes, pair.idx_bytes) == (70_000, 12, 34 + 8 + 16 + 24)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_documents_are_read_back(tmp_path: Path, dtype: str) -> None:
    write_pair(tmp_path / "a", dtype=dtype)
    reader = IndexedReader(tmp_path / "a")
    assert [reader[number].tolist() for number in range(len(reader))] == DOCUMENTS
    assert reader.lengths.tolist() == [5, 1, 7]
    assert reader.tokens == 13
    with pytest.raises(IndexError, match=r"document 3 is not in 0\.\.2"):
        reader[3]


def test_a_dataset_without_documents_is_written_and_read(tmp_path: Path) -> None:
    IndexedWriter(tmp_path / "a.bin", dtype="uint16").finish(tmp_path / "a.idx")
    assert (tmp_path / "a.idx").stat().st_size == 34 + 8
    assert len(IndexedReader(tmp_path / "a")) == 0


def test_an_id_that_does_not_fit_the_type_is_refused(tmp_path: Path) -> None:
    writer = IndexedWriter(tmp_path / "a.bin", dtype="uint16")
    with pytest.raises(DataError, match="token ids 1 to 65536 do not fit uint16"):
        writer.add_documents(np.array([1, 65_536]), np.array([2]))
    writer.discard()


def test_the_type_is_uint16_below_65500_ids() -> None:
    assert [dtype_for(size) for size in (4_096, 65_499, 65_500, 131_072)] == ["uint16", "uint16", "int32", "int32"]


def test_a_shortened_bin_file_is_not_opened(tmp_path: Path) -> None:
    write_pair(tmp_path / "a")
    (tmp_path / "a.bin").write_bytes(bytes(20))
    with pytest.raises(DataError, match=r"a\.bin: has 20 bytes, its index says 26"):
        IndexedReader(tmp_path / "a")


def test_a_shortened_idx_file_is_not_opened(tmp_path: Path) -> None:
    write_pair(tmp_path / "a")
    (tmp_path / "a.idx").write_bytes((tmp_path / "a.idx").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"a\.idx: has 101 bytes, its header says 102"):
        IndexedReader(tmp_path / "a")
