"""Processes that outlive whoever started them, found again by pid, start time and boot: a pid alone is given again.

Source: proc(5), /proc/PID/stat, fields 3 (state) and 22 (start time in clock ticks since boot).
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import psutil

_ENDED = ("Z", "X")
"""States of a process that has ended and that its parent has not asked about."""


def identity_of(pid: int) -> dict[str, Any]:
    """What finds a living process again: pid, start_ticks, boot_id, host.

    Raises:
        ProcessLookupError: There is no such process.
    """
    seen = _seen(pid)
    if seen is None:
        raise ProcessLookupError(pid)
    return {"pid": pid, "start_ticks": seen[1], "boot_id": _boot_id(), "host": platform.node()}


def whereabouts(identity: Mapping[str, Any]) -> Literal["alive", "gone", "elsewhere"]:
    """Whether the process of an identity still runs; elsewhere is a machine that this one cannot look into."""
    if identity["boot_id"] != _boot_id():
        return "gone" if identity["host"] == platform.node() else "elsewhere"
    seen = _seen(identity["pid"])
    is_it = seen is not None and seen[1] == identity["start_ticks"] and seen[0] not in _ENDED
    return "alive" if is_it else "gone"


def ask_to_end(identity: Mapping[str, Any]) -> None:
    """Sends SIGTERM to a process and its group, if it is alive."""
    if whereabouts(identity) == "alive":
        with suppress(ProcessLookupError):
            os.killpg(identity["pid"], signal.SIGTERM)


def end_at_once(identity: Mapping[str, Any]) -> None:
    """Kills a process and all below it, whatever group they are in: torchrun gives each rank one of its own."""
    if whereabouts(identity) != "alive":
        return
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(identity["pid"])
        for process in [top, *top.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _seen(pid: int) -> tuple[str, int] | None:
    """State and start time of a process; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may hold spaces and brackets
    return fields[0], int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
