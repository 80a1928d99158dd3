"""Inputs cut into parts that several processes share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from data_tools.errors import UsageError
from data_tools.inputs import find_inputs
from data_tools.lines import JsonLines
from data_tools.parts import Part, parts_of_task, place_of, rows_before, split_inputs


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def ranges(parts: list[Part]) -> list[tuple[int, int | None]]:
    return [(part.start, part.end) for part in parts]


def test_cuts_move_to_the_next_line_start(tmp_path: Path) -> None:
    file = find_inputs([write(tmp_path / "a.jsonl", b"x" * 9 + b"\n" + (b"y" * 9 + b"\n") * 9)]).files
    assert ranges(split_inputs(file, part_bytes=25)) == [(0, 30), (30, 50), (50, 80), (80, 100)]


def test_a_cut_at_a_line_start_stays_there(tmp_path: Path) -> None:
    file = find_inputs([write(tmp_path / "a.jsonl", b"123456789\n" * 4)]).files
    assert ranges(split_inputs(file, part_bytes=20)) == [(0, 20), (20, 40)]


def test_a_line_longer_than_a_part_swallows_the_cuts_inside_it(tmp_path: Path) -> None:
    file = find_inputs([write(tmp_path / "a.jsonl", b"a\n" + b"x" * 60 + b"\nb\nc\n")]).files
    assert ranges(split_inputs(file, part_bytes=10)) == [(0, 63), (63, 67)]
    assert ranges(split_inputs(find_inputs([write(tmp_path / "b.jsonl", b"x" * 60)]).files, part_bytes=10)) == [(0, 60)]


@pytest.mark.parametrize("part_bytes", [1, 2, 3, 7, 10, 1000])
def test_parts_hold_every_line_once_and_hash_their_own_bytes(tmp_path: Path, part_bytes: int) -> None:
    content = b"first\n\nthird line\r\n" + b"x" * 30 + b"\nlast"
    file = find_inputs([write(tmp_path / "a.jsonl", content)]).files
    parts = split_inputs(file, part_bytes=part_bytes)
    lines, rows = [], 0
    for part in parts:
        assert rows_before(part) == rows
        source = JsonLines(part, block_bytes=4)
        for block in source.blocks():
            lines += block.records
        rows = len(lines)
        assert source.seen().sha256 == hashlib.sha256(content[part.start : part.end]).hexdigest()
        assert source.seen().bytes == part.size
    assert lines == content.split(b"\n")


def test_only_plain_jsonl_is_cut(tmp_path: Path) -> None:
    import gzip

    files = find_inputs([write(tmp_path / "a.jsonl.gz", gzip.compress(b"1\n" * 999)), write(tmp_path / "b", b"1\n2\n")])
    assert ranges(split_inputs(files.files, part_bytes=3)) == [(0, None), (0, 4)]
    assert ranges(split_inputs(files.files)) == [(0, None), (0, None)]


def test_tasks_share_the_parts_and_each_part_is_read_once(tmp_path: Path) -> None:
    parts = split_inputs(find_inputs([write(tmp_path / "a.jsonl", b"1\n" * 7)]).files, part_bytes=2)
    shared = [parts_of_task(parts, task=task, num_tasks=3) for task in range(3)]
    assert [[number for number, _ in mine] for mine in shared] == [[0, 3, 6], [1, 4], [2, 5]]
    assert sorted((number, part.start) for mine in shared for number, part in mine) == [
        (number, 2 * number) for number in range(7)
    ]


def test_a_task_that_does_not_exist_is_refused() -> None:
    for task in (-1, 3):
        with pytest.raises(UsageError, match=rf"--task: {task}/3: tasks are numbered 0 to 2"):
            parts_of_task([], task=task, num_tasks=3)


def test_the_place_of_a_record_is_its_line_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"1\n" * 7)
    last = split_inputs(find_inputs([path]).files, part_bytes=4)[-1]
    assert place_of(last, 1) == f"{path}:7"
