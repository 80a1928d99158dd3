"""`megatron-ext study cancel`: ends a study, or some of its nodes, and waits until they have ended.

It needs no plan: whatever the study has begun lies below its folder, with how it is found again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from data_tools.errors import SetupError, UsageError
from megatron_ext.study.launcher import JobStatus, Launched, Launcher, read_launched, say_asked_to_stop, statuses
from megatron_ext.study.processes import process_status
from megatron_ext.study.study_lock import runner_of

_LOOK_S = 0.5


def cancel_study(
    folder: Path, names: Sequence[str], launchers: Sequence[Launcher], *, now: bool, say: Callable[[str], None]
) -> None:
    """Asks what a study has begun to save and end, or ends it at once, and waits for it.

    Args:
        folder: Of the study.
        names: Nodes, or beginnings of their names that fit one each; () for all, and the run itself.
        launchers: Find what runs.
        now: Whether nothing is saved.
        say: Writes a line for people.

    Raises:
        UsageError: A name fits no node that runs, or several.
        SetupError: What could be reached from here has ended, and something runs that cannot.
    """
    at_work = _at_work(folder, launchers)
    chosen = [_named(name, at_work) for name in names] if names else list(at_work)
    runner = None if names else runner_of(folder)
    if runner is not None:  # first, so that it begins nothing in the place of what ends
        say(f"the run of the study is asked to end (process {runner['pid']})")
        with suppress(ProcessLookupError):
            os.kill(runner["pid"], signal.SIGTERM)
    if not chosen and runner is None:
        say("nothing of it runs")
        return
    asked: set[str] = set()
    while (left := _reachable(at_work, chosen if names else None)) or _lives(runner):
        new = [name for name in left if name not in asked]
        say_asked_to_stop((left[name] for name in new), f"study cancel{' --now' if now else ''}", now=now)
        _end(left if now else {name: left[name] for name in new}, launchers, now=now)
        for name in new:
            say(f"{name}: {'ended at once' if now else 'asked to save and end'}")
        asked.update(new)
        time.sleep(_LOOK_S)
        at_work = _at_work(folder, launchers)  # again: a run that was ended as it began a node leaves it behind
    _require_reached(at_work, chosen if names else None)
    say("ended")


def _end(launched: Mapping[str, Launched], launchers: Sequence[Launcher], *, now: bool) -> None:
    for launcher in launchers:
        of_its_kind = {name: one for name, one in launched.items() if one.kind == launcher.kind}
        if of_its_kind:  # else it would ask a Slurm that is not there
            launcher.cancel(of_its_kind, now=now)


def _at_work(folder: Path, launchers: Sequence[Launcher]) -> dict[str, tuple[Launched, JobStatus]]:
    """What the study has begun and that runs or is queued, wherever."""
    found: dict[str, Launched] = {}
    for node in sorted((folder / "nodes").glob("*/")):
        if (launched := read_launched(node)) is not None:
            found[node.name] = launched
    jobs = statuses(found, launchers)
    return {name: (one, jobs[name]) for name, one in found.items() if name in jobs and jobs[name].status != "gone"}


def _reachable(at_work: Mapping[str, tuple[Launched, JobStatus]], names: Sequence[str] | None) -> dict[str, Launched]:
    """What this machine can stop, of these nodes or of all."""
    return {
        name: launched
        for name, (launched, job) in at_work.items()
        if job.is_reachable and (names is None or name in names)
    }


def _require_reached(at_work: Mapping[str, tuple[Launched, JobStatus]], names: Sequence[str] | None) -> None:
    """Says what was left alone.

    Raises:
        SetupError: With each node.
    """
    alone = [name for name in at_work if names is None or name in names]
    if alone:
        lines = "".join(f"\n  {name}: {at_work[name][1].note}" for name in alone)
        raise SetupError(f"these run on, for they cannot be reached from this machine; cancel there:{lines}")


def _named(name: str, at_work: Mapping[str, object]) -> str:
    fitting = [one for one in at_work if one.startswith(name)]
    if name in at_work:
        return name
    if len(fitting) != 1:
        there = ", ".join(at_work) or "none"
        what = "fits several nodes" if fitting else "is no node that runs"
        hint = "" if fitting else "\n  A node that waits has not begun: name no node, and the run itself ends too."
        raise UsageError(f"{name}: {what}; running or queued: {there}{hint}")
    return fitting[0]


def _lives(runner: Mapping[str, object] | None) -> bool:
    return runner is not None and process_status(runner) == "alive"
