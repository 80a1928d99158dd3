"""A shard plan as a Slurm array: the script, what of it is in the queue, and how to submit what is missing.

Array task i of N writes the shards i, i + N, i + 2 N, … of the plan that are missing, and nothing where none
is; so a task may be requeued, killed or submitted again at any time. The job's name carries the identity of the
output folder and N. Nothing else is remembered: squeue is asked by that name, also for jobs that were submitted
by hand.

    PREFIX/slurm/array.sbatch       the script of the last submission
    PREFIX/slurm/<job>_<task>.log   what each task printed; a requeued task appends

Source: sbatch(1) of Slurm 22.05. An array index must be below MaxArraySize, 1001 unless configured.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools import slurm
from data_tools.atomic_files import beside, write_atomically
from data_tools.errors import SetupError, UsageError
from data_tools.shards import ShardStatus

MAX_TASKS = 1000
"""Tasks of an array unless more are asked for: what an unconfigured Slurm takes."""

_OURS = ("array", "a", "job-name", "J", "output", "o", "chdir", "D", "open-mode", "requeue", "no-requeue")


@dataclass(frozen=True)
class Array:
    """An array over the shards of a plan.

    Attributes:
        output: Folder of the shards.
        num_tasks: N; the same one must be used as long as tasks of the job are in the queue.
        arguments: The command line of data-tools, without what concerns engines and tasks.
        options: Of sbatch, as `partition=cpu`, each a line of the script.
        workers: CPUs of a task, unless `options` say it.
        max_running: Tasks that may run at once; None: as many as the cluster gives.
    """

    output: Path
    num_tasks: int
    arguments: Sequence[str]
    options: Sequence[str] = ()
    workers: int | None = None
    max_running: int | None = None

    @property
    def name(self) -> str:
        """Name of the job."""
        return f"{_name(self.output)}-{self.num_tasks}"

    @property
    def script(self) -> Path:
        """Where the script lies."""
        return _script_of(self.output)


def _script_of(output: Path) -> Path:
    return output / "slurm" / "array.sbatch"


def _name(output: Path) -> str:
    return f"shards-{hashlib.sha256(bytes(output.resolve())).hexdigest()[:12]}"


def write_script(array: Array, tasks: Iterable[int]) -> Path:
    """Writes the script that runs some tasks of an array.

    Raises:
        UsageError: If an option of sbatch is one that the script sets.
    """
    for option in array.options:
        name = option.lstrip("-").partition("=")[0]
        if name in _OURS:
            raise UsageError(f"--sbatch {option}: {name} is set by --engine; leave it out")
    array.script.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(array.script, _script(array, sorted(tasks)).encode())
    return array.script


def _script(array: Array, tasks: Sequence[int]) -> str:
    at_once = f"%{array.max_running}" if array.max_running else ""
    given = [option.lstrip("-") for option in array.options]
    if not any(option.startswith(("cpus-per-task=", "c=")) for option in given):
        given.insert(0, f"cpus-per-task={array.workers or 1}")
    options = [
        f"job-name={array.name}",
        f"array={slurm.ranges(tasks)}{at_once}",
        f"chdir={Path.cwd()}",
        f"output={slurm.log_folder(array.script.parent)}/%A_%a.log",
        "open-mode=append",
        "requeue",
        *given,
    ]
    command = shlex.join([sys.executable, "-m", "data_tools", *array.arguments])
    workers = "" if array.workers else ' --workers "$SLURM_CPUS_PER_TASK"'
    return "\n".join(
        [
            "#!/bin/bash",
            f"# {array.num_tasks} tasks share the shards of {array.output}; data-tools wrote this.",
            "# A finished shard is not written again, so a task may run any number of times.",
            *(slurm.directive(option) for option in options),
            "",
            f'exec {command}{workers} --task "$SLURM_ARRAY_TASK_ID/{array.num_tasks}"',
            "",
        ]
    )


def submit(script: Path) -> str:
    """Hands the script to sbatch.

    Returns:
        The number of the job.

    Raises:
        SetupError: If there is no sbatch, or it refuses.
    """
    try:
        return str(slurm.submit(script, remedy="give what is missing with --sbatch KEY=VALUE …"))
    except SetupError as error:
        raise SetupError(f"--submit: {error}") from None


@dataclass(frozen=True)
class Queue:
    """What of an output's arrays is not over.

    Attributes:
        job: Number of the newest job.
        num_tasks: N of the array.
        running: Tasks that run.
        waiting: Tasks that wait, those that are to be requeued included.
    """

    job: str
    num_tasks: int
    running: frozenset[int]
    waiting: frozenset[int]


def queue(output: Path) -> Queue | None:
    """Asks squeue for the tasks of an output; None: none is there, or no array was ever made for it.

    Raises:
        SetupError: If squeue cannot say.
    """
    if not _script_of(output).exists() or not slurm.is_installed():
        return None
    found = [task for task in slurm.queue(of_me=True) if task.name.startswith(f"{_name(output)}-")]
    if not found:
        return None
    sizes = {int(task.name.rpartition("-")[2]) for task in found}
    if len(sizes) > 1:
        raise SetupError(f"{output}: arrays of {sorted(sizes)} tasks write it at once; scancel all but one")
    running = frozenset(task.index for task in found if task.index is not None and task.is_running)
    everything = frozenset(task.index for task in found if task.index is not None)
    return Queue(str(max(task.job for task in found)), sizes.pop(), running, everything - running)


def with_queue(shards: Sequence[ShardStatus], found: Queue | None) -> list[ShardStatus]:
    """The states with those of the queue: running, or queued, where a task will still come to a shard."""
    if found is None:
        return list(shards)
    return [_in_queue(shard, number % found.num_tasks, found) for number, shard in enumerate(shards)]


def _in_queue(shard: ShardStatus, task: int, found: Queue) -> ShardStatus:
    if shard.state in ("done", "running", "damaged") or task not in found.running | found.waiting:
        return shard
    is_begun = task in found.running and beside(shard.prefix, ".lock").exists()
    return replace(shard, state="running" if is_begun else "queued")


def arguments_without(own: argparse.ArgumentParser, command: str) -> list[str]:
    """The arguments of a command line of data-tools, without the options of a parser."""
    return own.parse_known_args(shlex.split(command)[1:])[1]
