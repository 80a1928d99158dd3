"""The folder of a stage belongs to one run."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import SetupError
from megatron_ext.training.stage_folder import StageFolder
from tests.support.pencil_project import PencilProject


def _has_no_locks(file: Any, operation: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_a_disk_without_locks_is_refused_before_anything_is_written(
    project: PencilProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", _has_no_locks)
    plan = project.plan()
    folder = StageFolder(Path("runs"), plan)
    with pytest.raises(SetupError) as caught:
        folder.open_for_writing(plan)
    assert str(caught.value) == (
        f"runs/stages/{plan.stage_id}/.lock: Function not implemented: without locks two processes could write this "
        "folder at once. Take one on a disk with locks; Lustre is mounted with -o flock."
    )
    assert [path.name for path in folder.path.iterdir()] == [".lock"]
