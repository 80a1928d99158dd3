"""What is prepared is built once, is whole or absent, and is taken up by its key alone."""

from __future__ import annotations

import json
import multiprocessing
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


@pytest.mark.parametrize("damage", ["changed", "missing", "no key file", "no JSON"])
def test_damage_is_said_and_mended(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare(tmp_path, "rows", KEY, _writes("1 2"))[0]
    files = {"changed": "rows", "missing": "rows", "no key file": "prepared.json", "no JSON": "prepared.json"}
    file = folder / files[damage]
    if damage in ("changed", "no JSON"):
        file.write_text("1 3")
    else:
        file.unlink()
    with pytest.raises(DataError, match="remove"):
        read_prepared(folder, KEY)
    assert prepare(tmp_path, "rows", KEY, _writes("1 2")) == (folder, True)
    assert "It is built again." in capsys.readouterr().err
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
