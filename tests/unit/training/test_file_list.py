"""The list of a checkpoint's files vouches for the whole checkpoint, and a file that cannot be read is damaged."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.training.file_list import ALWAYS_LISTED, FILE_LIST, damage_of, describe_files, write_file_list


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two ranks' files and the small ones, each holding its own name."""
    folder = tmp_path / "step_3"
    files = [folder / name for name in (*ALWAYS_LISTED, "__0_0.distcp", "__1_0.distcp")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    write_file_list(folder, describe_files(folder, files))
    return folder


def rewrite(checkpoint: Path, *, without: set[str]) -> None:
    listed = json.loads((checkpoint / FILE_LIST).read_text())
    (checkpoint / FILE_LIST).write_text(json.dumps({k: v for k, v in listed.items() if k not in without}))


def test_a_checkpoint_as_written_is_whole(checkpoint: Path) -> None:
    (checkpoint / "notes.txt").write_text("mine")
    assert damage_of(checkpoint) == []


@pytest.mark.parametrize("name", [*ALWAYS_LISTED, "__1_0.distcp"])
def test_a_file_that_the_list_leaves_out_is_damage(checkpoint: Path, name: str) -> None:
    rewrite(checkpoint, without={name})
    assert damage_of(checkpoint) == [f"{name}: not named in files.json, so nothing vouches for it"]


@pytest.mark.parametrize(("content", "lines"), [("{}", len(ALWAYS_LISTED) + 2), ("[]", len(ALWAYS_LISTED) + 2)])
def test_an_empty_list_vouches_for_nothing(checkpoint: Path, content: str, lines: int) -> None:
    (checkpoint / FILE_LIST).write_text(content)
    assert len(damage_of(checkpoint)) == lines


def test_ranks_say_once_what_the_list_leaves_out(checkpoint: Path) -> None:
    rewrite(checkpoint, without={"state.json"})
    seen = [damage_of(checkpoint, rank=rank, world_size=3) for rank in range(3)]
    assert [len(lines) for lines in seen] == [1, 0, 0]


@pytest.mark.parametrize("name", ["__1_0.distcp", FILE_LIST])
def test_an_error_of_the_disk_is_damage_of_that_file(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    opened = io.open

    def open_on_a_bad_disk(file: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(file).name == name:
            raise OSError(errno.EIO, "Input/output error")
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", open_on_a_bad_disk)
    assert damage_of(checkpoint) == [f"{name}: cannot be read ([Errno 5] Input/output error)"]
