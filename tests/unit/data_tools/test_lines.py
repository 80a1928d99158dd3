"""JSONL, plain and packed, in blocks of whole lines."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from data_tools.errors import DataError
from data_tools.formats import format_of
from data_tools.lines import JsonLines
from data_tools.parts import InputFile, Part

CONTENT = b"first\nsecond\r\n\nfourth line\nlast"
LINES = [b"first", b"second\r", b"", b"fourth line", b"last"]

Pack = Callable[[bytes], bytes]
PACKS: dict[str, Pack] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def reader(path: Path, **options: int) -> JsonLines:
    return JsonLines(Part(InputFile(path, format_of(path), path.stat().st_size)), **options)


def lines_of(source: JsonLines) -> list[bytes]:
    """The lines; asserts that they are numbered without a gap."""
    numbered = [
        (row, line) for block in source.blocks() for row, line in enumerate(block.records, start=block.first_row)
    ]
    assert [row for row, _ in numbered] == list(range(1, len(numbered) + 1))
    return [line for _, line in numbered]  # type: ignore[misc]


@pytest.mark.parametrize("block_bytes", [1, 7, 10, 11, 1000])
@pytest.mark.parametrize("ending", [b"\n", b""])
@pytest.mark.parametrize("suffix", PACKS)
def test_blocks_are_whole_lines_with_their_numbers(
    tmp_path: Path, suffix: str, block_bytes: int, ending: bytes
) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed := PACKS[suffix](CONTENT + ending))
    source = reader(path, block_bytes=block_bytes)
    assert lines_of(source) == LINES
    assert (source.seen().path, source.seen().bytes) == (str(path), len(packed))
    assert source.seen().sha256 == hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize("suffix", PACKS)
def test_sizes_of_blocks_sum_to_the_size_on_the_disk(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed := PACKS[suffix](b"".join(b"%d\n" % number for number in range(50_000))))
    assert sum(block.size for block in reader(path, block_bytes=999).blocks()) == len(packed)


def test_a_block_is_bounded_by_its_size_and_the_longest_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 99 + b"\n" + (b"y" * 9 + b"\n") * 1000)
    sizes = [sum(len(line) + 1 for line in block.records) for block in reader(path, block_bytes=50).blocks()]
    assert max(sizes) == 100


def test_a_line_of_100_megabytes_is_one_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"short\n" + b"x" * 100_000_000 + b"\nshort\n")
    assert [len(line) for line in lines_of(reader(path))] == [5, 100_000_000, 5]


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_tools.lines.LONGEST_LINE_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a\n" + b"x" * 99 + b"\n" + b"b\n")
    assert len(lines_of(reader(path, block_bytes=10))) == 3
    path.write_bytes(b"a\nb\n" + b"x" * 150 + b"\n")
    with pytest.raises(DataError, match=r"a\.jsonl:3: a line of over 100 bytes; is the file JSON lines\?"):
        lines_of(reader(path, block_bytes=10))


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content := b"\xef\xbb\xbf{}\n\xef\xbb\xbf{}\n")
    source = reader(path)
    assert lines_of(source) == [b"{}", b"\xef\xbb\xbf{}"]
    assert source.seen().sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_nothing_is_no_record(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACKS[suffix](b""))
    assert lines_of(reader(path)) == []


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_members_and_frames_in_a_row_are_one_text(tmp_path: Path, suffix: str) -> None:
    pack, path = PACKS[suffix], tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(b"fir") + pack(b"st\n") + pack(b"") + pack(b"last"))
    assert lines_of(reader(path)) == [b"first", b"last"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("cut", [1, 3, 100, 5000])
def test_a_packed_file_that_was_cut_is_never_a_shorter_one(tmp_path: Path, suffix: str, cut: int) -> None:
    packed = PACKS[suffix](
        b"".join(hashlib.sha256(b"%d" % number).digest().hex().encode() + b"\n" for number in range(999))
    )
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed[:-cut])
    with pytest.raises(
        DataError, match=rf"a\.jsonl{suffix}: damaged .* near byte [\d,]+: ends too early; copy it again"
    ):
        lines_of(reader(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_with_a_flipped_bit_or_a_tail_is_refused(tmp_path: Path, suffix: str) -> None:
    packed = PACKS[suffix](CONTENT * 1000)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed + b"garbage")
    with pytest.raises(DataError, match=r"damaged"):
        lines_of(reader(path))
    flipped = bytearray(packed)
    flipped[-3] ^= 1  # of the length in gzip, of the checksum in zstd
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"damaged"):
        lines_of(reader(path))


def test_a_skippable_frame_of_zstd_holds_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + PACKS[".zst"](b"first\n"))
    assert lines_of(reader(path)) == [b"first"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = JsonLines(Part(InputFile(tmp_path / "no.jsonl", "jsonl", 0)))
    with pytest.raises(DataError, match=r"no\.jsonl: cannot be read: No such file or directory"):
        lines_of(source)


def test_a_part_of_a_file_that_became_shorter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a\nb\n")
    source = JsonLines(Part(InputFile(path, "jsonl", 10), start=2, end=10))
    with pytest.raises(DataError, match=r"a\.jsonl: became shorter while it was read; run the command again"):
        lines_of(source)
