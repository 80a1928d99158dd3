"""One `study run` of a study at a time: RUN_ROOT/studies/STUDY/.lock, which holds who that is."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.atomic_files import is_being_written
from data_tools.errors import SetupError
from megatron_ext.study.processes import identity_of, process_status


@contextmanager
def only_runner(folder: Path) -> Iterator[None]:
    """Holds the lock of a study; the kernel drops it with the process, so a killed run blocks nobody.

    Args:
        folder: Of the study; made if it is not there.

    Raises:
        SetupError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            who = _identity(folder)
            name = f"process {who['pid']} on {who['host']}" if who else "another process"
            raise SetupError(
                f"{folder}: {name} runs this study already. Wait for it (megatron-ext study status), or end it "
                "(megatron-ext study cancel)."
            ) from None
        lock.truncate(0)
        lock.write(json.dumps(identity_of(os.getpid())))
        lock.flush()
        yield


def runner_of(folder: Path) -> dict[str, Any] | None:
    """The process that runs a study on this machine (`processes.identity_of`); None where there is none.

    Whoever has just taken the lock has not written himself into it yet: what stands there is then no living process.
    """
    who = _identity(folder) if is_being_written(f"{folder}/") else None
    return who if who is not None and process_status(who) == "alive" else None


def _identity(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / ".lock").read_bytes())
        return found
    except (OSError, ValueError):
        return None
