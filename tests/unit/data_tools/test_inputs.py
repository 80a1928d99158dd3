"""From what people name to the files that are read, and what ends a job at its start."""

from __future__ import annotations

import gzip
import io
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_tools.adapters import adapter_named
from data_tools.documents import texts
from data_tools.errors import DataError, UsageError
from data_tools.inputs import find_inputs, open_part
from data_tools.parts import Part, split_inputs
from data_tools.readers import BadRecord

LINE = b'{"text": "a"}\n'


def write(path: Path, content: bytes = LINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(*names: str | Path) -> list[str]:
    return [file.path.name for file in find_inputs(names).files]


def stdin_of(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))  # type: ignore[type-var]


def test_files_are_read_in_the_order_of_naming(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    write(tmp_path / "b.txt")
    assert found(tmp_path / "b.txt", tmp_path / "a.jsonl") == ["b.txt", "a.jsonl"]


def test_a_folder_is_read_to_its_depth_in_order_and_what_is_left_out_is_listed(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/2.jsonl.gz.old", "a/1.jsonl", "c.card.json", ".cache/x.jsonl", "README.md", "d.json.gz"):
        write(tmp_path / name, gzip.compress(LINE, mtime=0) if name.endswith(".gz") else LINE)
    inputs = find_inputs([tmp_path])
    assert [str(file.path.relative_to(tmp_path)) for file in inputs.files] == ["a/1.jsonl", "b.jsonl", "d.json.gz"]
    assert [path.name for path in inputs.left_out] == ["README.md", "2.jsonl.gz.old", "c.card.json"]
    assert inputs.size == sum(file.path.stat().st_size for file in inputs.files)


def test_a_folder_without_inputs_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "README.md")
    with pytest.raises(DataError, match=r"holds no file that ends in \.jsonl, \.jsonl\.gz"):
        find_inputs([tmp_path])


def test_globs_are_sorted_and_go_down_with_two_stars(tmp_path: Path) -> None:
    for name in ("2.jsonl", "1.jsonl", "deep/er/3.jsonl", "4.txt"):
        write(tmp_path / name)
    assert found(tmp_path / "*.jsonl") == ["1.jsonl", "2.jsonl"]
    assert found(tmp_path / "**/*.jsonl") == ["1.jsonl", "2.jsonl", "3.jsonl"]
    assert found(tmp_path / "dee?") == ["3.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_itself(tmp_path: Path) -> None:
    write(tmp_path / "a[1].jsonl")
    assert found(tmp_path / "a[1].jsonl") == ["a[1].jsonl"]


def test_a_glob_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\*\.jsonl: matches no file"):
        find_inputs([tmp_path / "*.jsonl"])


def test_a_file_that_is_reached_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    (tmp_path / "link.jsonl").symlink_to(path)
    with pytest.raises(UsageError, match=r"--input: .*a\.jsonl is given twice; its documents would be repeated"):
        find_inputs([tmp_path])
    with pytest.raises(UsageError, match=r"given twice"):
        find_inputs(["-", "-"])


def test_a_missing_file_is_named_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.jsonl: cannot be read: No such file or directory"):
        find_inputs([write(tmp_path / "a.jsonl"), tmp_path / "no.jsonl"])


def test_an_unreadable_file_is_named() -> None:
    with pytest.raises(DataError, match=r"/proc/self/mem: cannot be read: Input/output error"):
        find_inputs(["/proc/self/mem"])


def test_a_named_pipe_is_not_sniffed_away(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe: is no regular file; pipe it in and name it -"):
        find_inputs([tmp_path / "pipe"])


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.jsonl", LINE, "jsonl"),
        ("empty.jsonl", b"", "jsonl"),
        ("a.jsonl", gzip.compress(LINE, mtime=0), "jsonl.gz"),
        ("a.jsonl", zstandard.compress(LINE), "jsonl.zst"),
        ("a.data", b"PAR1", "parquet"),
    ],
)
def test_the_content_tells_the_format(tmp_path: Path, name: str, content: bytes, form: str) -> None:
    assert find_inputs([write(tmp_path / name, content)]).files[0].format == form


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl.gz", LINE, "is JSON lines or empty, its name says gzip"),
        ("a.jsonl.gz", b"", "is JSON lines or empty, its name says gzip"),
        ("a.jsonl.zst", gzip.compress(LINE, mtime=0), "is gzip, its name says zstd"),
        ("a.parquet", LINE, "is JSON lines or empty, its name says Parquet"),
        ("a.jsonl", b"BZh9", "is bzip2, not JSON lines; unpack or convert it first"),
        ("a.jsonl", b"\xfd7zXZ\x00", "is xz, not JSON lines"),
        ("a.jsonl", b"PK\x03\x04", "is zip, not JSON lines"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "is UTF-16 text, not JSON lines"),
    ],
)
def test_a_file_that_is_not_what_it_promises_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        find_inputs([write(tmp_path / name, content)])
    assert said in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_stdin_is_read_whatever_its_packing(monkeypatch: pytest.MonkeyPatch, pack: object) -> None:
    stdin_of(pack(LINE + b"\n" + LINE), monkeypatch)  # type: ignore[operator]
    file = find_inputs(["-"]).files[0]
    reader = open_part(split_inputs([file], part_bytes=1)[0])
    assert [block.records for block in reader.blocks()] == [[LINE[:-1], b"", LINE[:-1]]]
    assert reader.seen().path == "-"
    assert reader.seen().bytes == len(pack(LINE + b"\n" + LINE))  # type: ignore[operator]


def test_parquet_cannot_be_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin_of(b"PAR1", monkeypatch)
    with pytest.raises(DataError, match="stdin: Parquet is read from its end"):
        find_inputs(["-"])


def test_every_bad_line_has_its_number_and_reason_whatever_the_line_ends(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "first"}',
        b"{",
        b"",
        b'{"id": 1}',
        b'{"text": null}',
        b'{"text": 7}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": ""}',
        b"[]",
        b'{"text": "last"}',
    ]
    for end in (b"\n", b"\r\n"):
        path = write(tmp_path / "a.jsonl", end.join(lines))
        convert = adapter_named("text").for_file(path)
        said = {}
        for block in open_part(Part(find_inputs([path]).files[0])).blocks():
            for row, raw in enumerate(block.records, start=block.first_row):
                try:
                    said[row] = convert(raw).text  # type: ignore[union-attr]
                except BadRecord as error:
                    said[row] = f"({error.reason})"
        assert said == {
            1: "first",
            2: "(malformed)",
            3: "(blank)",
            4: "(missing key)",
            5: "(not a string)",
            6: "(not a string)",
            7: "(malformed)",
            8: "(malformed)",
            9: "(empty)",
            10: "(not an object)",
            11: "last",
        }


def test_texts_stop_at_the_first_bad_record_with_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINE + b'{"text": 1}\n')
    with pytest.raises(DataError, match=r'a\.jsonl:2: not a string: "text" is int, not a string; mend or remove'):
        list(texts([path], adapter_named("text")))


def test_texts_of_all_formats_are_one_stream(tmp_path: Path) -> None:
    write(tmp_path / "1.jsonl")
    write(tmp_path / "2.jsonl.gz", gzip.compress(b'{"text": "b"}', mtime=0))
    pq.write_table(pa.table({"text": ["c", "d"]}), tmp_path / "3.parquet")
    assert list(texts([tmp_path], adapter_named("text"))) == ["a", "b", "c", "d"]
