"""Runs the nodes of a study as jobs of Slurm: all at once, each behind the job of its parent.

What is in the queue is asked of squeue and found by the job's name, which says what the job runs and where (see
slurm_arrays.py). Whoever put a node there, this study, another one with the same stages, or a hand, it is never
submitted twice, and nothing has to be remembered. RUN_ROOT/studies/.slurm.lock lets one submit after the other.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_tools import slurm
from data_tools.slurm import QueuedTask
from megatron_ext.recipe.site_schema import SlurmRecipe
from megatron_ext.study.launcher import (
    STUDIES,
    Launched,
    Task,
    next_attempt,
    read_launched,
    study_folder,
    write_launched,
)
from megatron_ext.study.slurm_arrays import Array, arrays_of, job_name
from megatron_ext.study.slurm_jobs import SLURM, queued_nodes, scancel
from megatron_ext.study.slurm_script import write_script
from megatron_ext.study.study_plan import StudyPlan
from megatron_ext.study.tasks import is_finished


@dataclass
class SlurmLauncher:
    """Submits nodes; slurm_jobs.py finds them again.

    Args:
        run_root: Folder that holds `stages/` and `studies/`.
        plan: The study.
        site: How jobs are submitted here.
        site_file: Where that stands, for messages.
        say: Writes a line for people.
        patience_s: How long jobs that just end are waited for.
    """

    run_root: Path
    plan: StudyPlan
    site: SlurmRecipe
    site_file: str
    say: Callable[[str], None] = print
    patience_s: float = 30.0

    def launch(self, tasks: Sequence[Task]) -> tuple[list[str], list[str]]:
        """Submits those of the tasks that are not in the queue.

        Returns:
            Names of what was submitted, and of what was not, for its parent is neither finished nor in the queue.

        Raises:
            SetupError: Slurm refuses; what was submitted before stays, and the next run submits the rest.
        """
        with self._alone():
            queued = self._settled({task.name for task in tasks})
            for task in tasks:
                if (found := queued.get(task.name)) is not None:
                    self._remember(task, found.id, next_attempt(task.folder))
            fresh = [task for task in tasks if task.name not in queued]
            submitted: dict[str, QueuedTask] = {}
            for members in arrays_of(fresh, self.plan):
                for dependency, part in self._by_dependency(members, queued | submitted).items():
                    submitted |= self._submit(part, dependency)
        return list(submitted), [task.name for task in fresh if task.name not in submitted]

    def write_scripts(self, tasks: Sequence[Task]) -> list[tuple[Path, list[str], list[str]]]:
        """Writes the scripts of tasks and submits nothing.

        Returns:
            Script, nodes, and the nodes behind which it comes, of each array.
        """
        arrays = arrays_of(tasks, self.plan)
        return [
            (
                self._write(array),
                [task.name for task in array.values()],
                sorted({p for t in array.values() for p in t.after}),
            )
            for array in arrays
        ]

    def _settled(self, names: Set[str]) -> dict[str, QueuedTask]:
        """What is in the queue and will run: of a job that just ends it is waited for whether it goes back there."""
        until = time.monotonic() + self.patience_s
        while True:
            queued = queued_nodes(self.run_root)
            ending = [queued[name] for name in names if name in queued and queued[name].is_ending]
            if not ending or time.monotonic() > until:
                break
            time.sleep(1.0)
        for task in ending:
            self.say(f"WARNING: job {task.id} has been ending for {self.patience_s:.0f} s and counts as queued")
        for name in sorted(names & queued.keys()):
            if queued[name].never_begins:
                scancel(queued[name].id)
                self.say(f"cancelled {queued[name].id:>8}  {name}: what it waited for has failed")
        return {name: task for name, task in queued.items() if not task.never_begins}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else submits to this run root meanwhile."""
        (self.run_root / STUDIES).mkdir(parents=True, exist_ok=True)
        with (self.run_root / STUDIES / ".slurm.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _by_dependency(self, members: Array, queued: Mapping[str, QueuedTask]) -> dict[str, Array]:
        """The tasks of an array by what Slurm is told to wait for: their parents' array, one job of it, nothing."""
        parts: dict[str, Array] = {}
        for index, task in members.items():
            waited = [one for one in task.after if not is_finished(self.run_root, self.plan.stage(one))]
            missing = [parent for parent in waited if parent not in queued]
            if missing:
                self.say(f"not submitted  {task.name}: {missing[0]} is neither finished nor in the queue")
            else:
                jobs = [queued[parent] for parent in waited]
                conditions = [f"aftercorr:{job.job}" if job.index == index else f"afterok:{job.id}" for job in jobs]
                parts.setdefault(",".join(conditions), {})[index] = task
        return parts

    def _submit(self, members: Array, dependency: str) -> dict[str, QueuedTask]:
        """Submits one array and remembers it."""
        script = self._write(members)
        attempts = {index: next_attempt(task.folder) for index, task in members.items()}  # before a job can begin
        options = [f"--dependency={dependency}"] if dependency else []
        job = slurm.submit(script, *options, remedy=f"what it asks for stands in {self.site_file} under slurm")
        made = {task.name: QueuedTask(job, index, "PENDING", "", "", "", "") for index, task in members.items()}
        for index, task in members.items():
            self._remember(task, made[task.name].id, attempts[index])
            self.say(f"submitted {made[task.name].id:>8}  {task.name}{f'  {dependency}' if dependency else ''}")
        return made

    def _write(self, members: Array) -> Path:
        first = next(iter(members.values()))
        script = study_folder(self.run_root, self.plan.name).resolve() / "slurm" / f"{first.name}.sbatch"
        script.parent.mkdir(parents=True, exist_ok=True)
        write_script(script, job_name(members, self.run_root), members, self.site, run_root=self.run_root)
        return script

    def _remember(self, task: Task, job: str, attempt: int) -> None:
        """Writes launch.json, as the job does again when it begins."""
        before = read_launched(task.folder)
        if before is not None and before.handle.get("job") == job:
            return
        task.folder.mkdir(parents=True, exist_ok=True)
        log = study_folder(self.run_root, self.plan.name).resolve() / "slurm" / f"{job}.log"
        handle = {"job": job, "log": str(log)}
        write_launched(task.folder, Launched(SLURM, attempt, time.time(), ("sbatch",), handle))
