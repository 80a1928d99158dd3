"""Finds the nodes of a study in Slurm's queue, and cancels them there."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools import slurm
from data_tools.errors import SetupError
from data_tools.slurm import QueuedTask
from megatron_ext.study.launcher import JobStatus, Launched
from megatron_ext.study.slurm_arrays import by_node

SLURM = "slurm"
"""`kind` of launch.json."""


@dataclass
class SlurmJobs:
    """The jobs of a run root, whoever submitted them.

    Args:
        run_root: Folder that holds `stages/` and `studies/`.
        look_s: How old what `poll` says may be: whoever watches looks often, and squeue is everybody's.
    """

    run_root: Path
    look_s: float = 10.0
    kind: str = SLURM
    _seen: dict[str, QueuedTask] | SetupError | None = None  # an error: why Slurm could not be asked
    _seen_at: float = 0.0
    _jobs: dict[str, Any] = field(default_factory=dict)
    _told: dict[str, Any] = field(default_factory=dict)

    def poll(self, launched: Mapping[str, Launched]) -> Mapping[str, JobStatus]:
        """What the queue says of nodes that were launched; where Slurm cannot be asked, they are taken to be in it."""
        jobs = {name: one.handle.get("job") for name, one in launched.items()}
        is_old = time.monotonic() - self._seen_at > self.look_s
        if self._seen is None or is_old or not jobs.items() <= self._jobs.items():  # of a new one it knows nothing
            try:
                self._seen = queued_nodes(self.run_root)
            except SetupError as error:  # kept as long as an answer: squeue may take seconds to refuse
                self._seen = error
            self._seen_at, self._jobs = time.monotonic(), jobs
        queued = self._seen
        if isinstance(queued, SetupError):
            return {name: _not_seen(one, str(queued)) for name, one in launched.items()}
        return {
            name: _job_status(queued[name]) if name in queued else JobStatus("gone", _last_words(one))
            for name, one in launched.items()
        }

    def cancel(self, launched: Mapping[str, Launched], *, now: bool) -> None:
        """Takes waiting nodes out of the queue, then tells those that run to save and end, or ends them.

        Raises:
            SetupError: Slurm refuses.
        """
        told = {name: one.handle.get("job") for name, one in launched.items()}
        if told.items() <= self._told.items():  # once is enough, however often it is looked whether they have ended
            return
        self._told |= told
        self._seen = None
        queued = queued_nodes(self.run_root)
        found = [queued[name] for name in launched if name in queued]
        waiting = [task.id for task in found if not task.is_running or now]
        running = [task.id for task in found if task.is_running and not now]
        for options, ids in (((), waiting), (("--batch", "--signal=USR2"), running)):
            if ids:
                scancel(*options, *ids)


def queued_nodes(run_root: Path) -> dict[str, QueuedTask]:
    """What of the queue runs nodes of a run root, by their names.

    Raises:
        SetupError: Slurm cannot be asked.
    """
    return by_node(slurm.queue(), run_root)


def scancel(*words: str) -> None:
    """Calls scancel with options and jobs.

    Raises:
        SetupError: It refuses.
    """
    done = subprocess.run(["scancel", *words], capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"scancel {' '.join(words)}: {done.stderr.strip()}")


def _job_status(task: QueuedTask) -> JobStatus:
    if task.is_running:
        return JobStatus("running", f"job {task.id} on {task.nodes}")
    return JobStatus("queued", f"job {task.id}: {task.reason}")


def _not_seen(launched: Launched, why: str) -> JobStatus:
    job = launched.handle.get("job", "")
    note = f"job {job} was submitted, and Slurm cannot be asked about it here: {why.partition(';')[0]}"
    return JobStatus("queued", f"{note}; if it is over: rm its launch.json", is_reachable=False)


def _last_words(launched: Launched) -> str:
    """The job of a node that is gone, and what Slurm itself wrote at its end; its log holds earlier starts too."""
    job, log = (str(launched.handle.get(key, "")) for key in ("job", "log"))
    try:
        lines = Path(log).read_text(errors="replace").splitlines()
    except OSError:  # it has not begun
        lines = []
    has_spoken = bool(lines) and lines[-1].startswith("slurmstepd")
    return f"job {job}: {lines[-1].partition('error: ')[2].strip('* ')}" if has_spoken else f"job {job}"
