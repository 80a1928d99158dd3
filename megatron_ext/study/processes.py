"""Processes that outlive whoever started them, found again by more than their pid, which is given again.

| field         | meaning |
|---------------|---------|
| pid           | its number, in its container's count |
| start_ticks   | when it began, in clock ticks since boot |
| boot_id       | which start of which kernel; containers of one machine share it |
| pid_namespace | which container's count of processes; "" where the system does not tell |
| host          | name of the machine or container |
| machine_id    | of the machine's installation, for two machines may have one name; "" where there is none |

Where pid_namespace or machine_id is missing (earlier versions wrote neither) it is taken to be this one's.

Source: proc(5), /proc/PID/stat, fields 3 (state) and 22 (start time in clock ticks since boot); pid_namespaces(7);
machine-id(5).
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
    """What finds a living process again, field by field as above.

    Raises:
        ProcessLookupError: There is no such process.
    """
    seen = _seen(pid)
    if seen is None:
        raise ProcessLookupError(pid)
    where = {"boot_id": _boot_id(), "pid_namespace": _pid_namespace()}
    return {"pid": pid, "start_ticks": seen[1]} | where | {"host": platform.node(), "machine_id": _machine_id()}


def process_status(identity: Mapping[str, Any]) -> Literal["alive", "gone", "elsewhere"]:
    """Whether the process of an identity still runs; elsewhere is a machine or a container that none can look into."""
    if not is_of_this_boot(identity):
        here = {"host": platform.node(), "machine_id": _machine_id()}
        return "gone" if all(identity.get(key, value) == value for key, value in here.items()) else "elsewhere"
    if identity.get("pid_namespace", _pid_namespace()) != _pid_namespace():
        return "elsewhere"
    seen = _seen(identity["pid"])
    is_it = seen is not None and seen[1] == identity["start_ticks"] and seen[0] not in _ENDED
    return "alive" if is_it else "gone"


def is_of_this_boot(identity: Mapping[str, Any]) -> bool:
    """Whether it is of this kernel, in whichever container: then locks tell of it."""
    return bool(identity["boot_id"] == _boot_id())


def ask_to_end(identity: Mapping[str, Any]) -> None:
    """Sends SIGTERM to a process and its group, if it is alive."""
    if process_status(identity) == "alive":
        with suppress(ProcessLookupError):
            os.killpg(identity["pid"], signal.SIGTERM)


def end_at_once(identity: Mapping[str, Any]) -> None:
    """Kills a process and all below it, whatever group they are in: torchrun gives each rank one of its own."""
    if process_status(identity) != "alive":
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


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""
