"""What is prepared is built once, is whole or absent, and is taken up by its key alone."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import platform
import time
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import DataError
from megatron_ext.plan.prepared import prepare, prepared_folder, read_prepared

KEY = {"data_id": "a" * 64, "sequence_length": 4}


def _writes(text: str, calls: list[str] | None = None) -> Any:
    def build(folder: Path) -> None:
        if calls is not None:
            calls.append(text)
        (folder / "rows").write_text(text)

    return build


def test_content_is_built_once_and_read_from_then_on(tmp_path: Path) -> None:
    calls: list[str] = []
    first, second = (prepare(tmp_path, "rows", KEY, _writes("1 2", calls)) for _ in range(2))
    assert (first[1], second[1], calls) == (True, False, ["1 2"])
    assert first[0] == second[0] == prepared_folder(tmp_path, "rows", KEY)
    assert (first[0] / "rows").read_text() == "1 2"
    assert [path.name for path in (tmp_path / "prepared").glob(".*")] == []


def test_every_value_of_the_key_names_another_folder(tmp_path: Path) -> None:
    other = prepare(tmp_path, "rows", KEY | {"sequence_length": 5}, _writes("3"))[0]
    assert other != prepared_folder(tmp_path, "rows", KEY)
    assert not read_prepared(prepared_folder(tmp_path, "rows", KEY), KEY)


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "rows").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, "rows", KEY, build)
    assert [path.suffix for path in (tmp_path / "prepared").iterdir()] == [".lock"]
    assert prepare(tmp_path, "rows", KEY, _writes("whole"))[1]


@pytest.mark.parametrize("damage", ["changed", "missing", "no key file", "no JSON", "another key"])
def test_damage_is_said_and_mended(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare(tmp_path, "rows", KEY, _writes("1 2"))[0]
    file = folder / ("rows" if damage in ("changed", "missing") else "prepared.json")
    if damage in ("changed", "no JSON"):
        file.write_text("1 3")
    elif damage == "another key":
        file.write_text(file.read_text().replace('"sequence_length": 4', '"sequence_length": 5'))
    else:
        file.unlink()
    with pytest.raises(DataError, match="remove"):
        read_prepared(folder, KEY)
    assert prepare(tmp_path, "rows", KEY, _writes("1 2")) == (folder, True)
    said = capsys.readouterr().err
    assert said.count("It is built again.") == said.count("WARNING") == 1
    assert "remove" not in said
    assert (folder / "rows").read_text() == "1 2"


def test_a_folder_of_another_key_is_not_taken_up(tmp_path: Path) -> None:
    folder = prepare(tmp_path, "rows", KEY, _writes("1 2"))[0]
    said = json.loads((folder / "prepared.json").read_text())
    (folder / "prepared.json").write_text(json.dumps(said | {"key": KEY | {"sequence_length": 5}}))
    with pytest.raises(DataError, match="'sequence_length': 5} is not .*'sequence_length': 4}; remove"):
        read_prepared(folder, KEY)


def _build_slowly(root: Path) -> None:
    def build(folder: Path) -> None:
        with (root / "calls").open("a") as file:
            file.write("x")
        time.sleep(0.3)
        (folder / "rows").write_text("1 2")

    folder, _ = prepare(root, "rows", KEY, build)
    assert (folder / "rows").read_text() == "1 2"


def test_of_many_that_start_at_once_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    ranks = [multiprocessing.get_context("fork").Process(target=_build_slowly, args=(tmp_path,)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=20)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert (tmp_path / "calls").read_text() == "x"


def _has_no_locks(file: Any, operation: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk such as Lustre mounted without `-o flock`."""
    monkeypatch.setattr(fcntl, "flock", _has_no_locks)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_content_is_kept_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, is_new = prepare(tmp_path, "rows", KEY, _writes("1 2"))
    assert (is_new, (folder / "rows").read_text()) == (True, "1 2")
    assert capsys.readouterr().err == (
        f"WARNING: {folder}.lock: no lock (Function not implemented): all that start at once compute the same.\n"
    )
    assert prepare(tmp_path, "rows", KEY, _writes("3")) == (folder, False)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("is_damaged", [False, True])
def test_without_locks_the_first_of_those_that_build_at_once_stays(tmp_path: Path, is_damaged: bool) -> None:
    """A second one builds from beginning to end while the first one does."""
    folder = prepared_folder(tmp_path, "rows", KEY)
    if is_damaged:
        folder.mkdir(parents=True)

    def build(partial: Path) -> None:
        assert prepare(tmp_path, "rows", KEY, _writes("second")) == (folder, True)
        (partial / "rows").write_text("first")

    assert prepare(tmp_path, "rows", KEY, build)[0] == folder
    assert (folder / "rows").read_text() == "second"
    assert list(folder.parent.glob(".*")) == []


@pytest.mark.usefixtures("no_locks")
def test_without_locks_of_many_that_start_at_once_every_one_has_the_content(tmp_path: Path) -> None:
    ranks = [multiprocessing.get_context("fork").Process(target=_build_slowly, args=(tmp_path,)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=20)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert list((tmp_path / "prepared").glob(".*")) == []


def _build_for_ever(root: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "rows").write_text("half")
        time.sleep(60)

    prepare(root, "rows", KEY, build)


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """That of another machine stays: the lock may not reach to there, and the build may go on."""
    process = multiprocessing.get_context("fork").Process(target=_build_for_ever, args=(tmp_path,))
    process.start()
    while not (left := [file for file in (tmp_path / "prepared").glob(".rows-*/rows") if file.read_text()]):
        time.sleep(0.01)
    process.kill()
    process.join(timeout=20)
    assert left[0].read_text() == "half"
    elsewhere = tmp_path / "prepared" / left[0].parent.name.replace(f".{platform.node()}.", ".elsewhere.")
    elsewhere.mkdir()
    folder, is_new = prepare(tmp_path, "rows", KEY, _writes("1 2"))
    assert (is_new, (folder / "rows").read_text()) == (True, "1 2")
    assert list(folder.parent.glob(".*")) == [elsewhere]
