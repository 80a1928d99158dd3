"""An input is known again without being read, and any change to it shows."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.file_state import changes_of
from data_tools.inputs import find_inputs
from data_tools.lines import JsonLines
from data_tools.manifest import SourceFile
from data_tools.parts import Part

CONTENT = b'{"text": "a"}\n' * 400_000
Change = Callable[[Path], object]


def read(part: Part) -> SourceFile:
    reader = JsonLines(part)
    for _ in reader.blocks():
        pass
    return reader.seen()


def part_of(path: Path, *, start: int = 0, end: int | None = None) -> Part:
    return Part(find_inputs([path]).files[0], start, end)


def bytes_read() -> int:
    """By this process so far, with read calls. Source: proc(5), rchar."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.fixture(scope="module")
def settled_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of 5.6 MB that have not been changed for longer than their state must be settled."""
    folder = tmp_path_factory.mktemp("settled")
    paths = [folder / f"{number}.jsonl" for number in range(5)]
    for path in paths:
        path.write_bytes(CONTENT)
    time.sleep(2.1)
    return paths


@pytest.fixture
def settled(settled_files: list[Path]) -> Path:
    """One that no test changes."""
    return settled_files[0]


def test_an_untouched_file_is_not_read_again(settled: Path) -> None:
    source = read(part := part_of(settled))
    before = bytes_read()
    assert changes_of(part, source) == []
    assert bytes_read() - before < 10_000


def test_a_file_changed_just_now_is_read_again(tmp_path: Path) -> None:
    (path := tmp_path / "in.jsonl").write_bytes(CONTENT)
    source = read(part := part_of(path))
    assert (source.inode, source.ctime_ns) == (0, 0)
    before = bytes_read()
    assert changes_of(part, source) == []
    assert bytes_read() - before > len(CONTENT)


def forge(path: Path) -> None:
    """Other bytes, as many, with the old time of change of the content."""
    before = path.stat()
    path.write_bytes(CONTENT.replace(b"a", b"b"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    """Another file in its place, with its time."""
    before = path.stat()
    (other := path.with_name("other")).write_bytes(CONTENT.replace(b"a", b"b"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize(
    ("number", "change", "end"), [(1, forge, None), (2, replace, None), (3, forge, 28), (4, replace, 28)]
)
def test_other_content_shows_though_size_and_mtime_are_the_same(
    settled_files: list[Path], number: int, change: Change, end: int | None
) -> None:
    path = settled_files[number]
    part = part_of(path, start=14 if end else 0, end=end)
    source = read(part)
    assert source.inode
    state = path.stat()
    change(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert [name for name, _, _ in changes_of(part, source)] == [f"sha256 of {path}"]


def test_a_moved_or_touched_file_is_the_same(tmp_path: Path, settled: Path) -> None:
    source = read(part_of(settled))
    shutil.copy(settled, path := tmp_path / "copy.jsonl")
    assert changes_of(part_of(path), source) == []
    path.touch()
    assert changes_of(part_of(path), source) == []


def test_a_longer_file_needs_no_reading(tmp_path: Path, settled: Path) -> None:
    source = read(part_of(settled))
    (path := tmp_path / "in.jsonl").write_bytes(CONTENT + b"\n")
    assert changes_of(part_of(path), source) == [(f"bytes of {path}", len(CONTENT), len(CONTENT) + 1)]


@pytest.mark.parametrize("change", [forge, replace])
def test_a_file_changed_while_it_is_read_is_refused(tmp_path: Path, change: Change) -> None:
    (path := tmp_path / "in.jsonl").write_bytes(CONTENT)
    reader = JsonLines(part_of(path), block_bytes=1_000)
    blocks = reader.blocks()
    next(blocks)
    change(path)
    if change is forge:
        path.touch()
    with pytest.raises(DataError, match=r"in\.jsonl: was changed while it was read; run the command again"):
        list(blocks)
