"""What Slurm is asked and told, whoever asks: the queue, a script to run, the lines that such a script begins with.

Nothing is remembered: a job is found by its name, also one that was submitted by hand or by somebody else.

Source: sbatch(1), squeue(1), scancel(1) of Slurm 22.05.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import SetupError

_SHOWN = ("%F", "%K", "%T", "%u", "%r", "%N", "%j")  # the name last: it may hold anything
_PAUSES_S = (1.0, 4.0)
"""Before squeue is asked again: a busy slurmctld does not answer, or closes the connection (squeue: SIGPIPE)."""
_NEVER = "DependencyNeverSatisfied"
_RUNNING = ("RUNNING", "COMPLETING", "STOPPED", "SUSPENDED", "SIGNALING", "STAGE_OUT")


@dataclass(frozen=True)
class QueuedTask:
    """One job of the queue, or one task of an array.

    Attributes:
        job: Number of the job; of the whole array where it is one.
        index: Of the task in its array; None where there is no array.
        state: Slurm's word: PENDING, RUNNING, ….
        user: Whose it is.
        reason: Why it waits, in Slurm's word, such as Resources or Dependency; how it ended.
        nodes: Where it runs.
        name: Of the job.
    """

    job: int
    index: int | None
    state: str
    user: str
    reason: str
    nodes: str
    name: str

    @property
    def id(self) -> str:
        """As scancel and scontrol take it: 12, or 12_3."""
        return f"{self.job}" if self.index is None else f"{self.job}_{self.index}"

    @property
    def is_running(self) -> bool:
        """Whether it has begun; a job that is to be requeued waits."""
        return self.state in _RUNNING

    @property
    def is_ending(self) -> bool:
        """Whether its processes have ended or are about to; it may yet go back to the queue."""
        return self.state == "COMPLETING"

    @property
    def never_begins(self) -> bool:
        """Whether it waits for what has failed; Slurm takes it out of the queue some time later, or leaves it there."""
        return self.state == "PENDING" and self.reason == _NEVER


def is_installed() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("squeue") is not None


def queue(*, of_me: bool = False, and_ended: bool = False) -> list[QueuedTask]:
    """What waits or runs; tasks of arrays one by one.

    Args:
        of_me: Only this user's.
        and_ended: Also what ended so shortly before that Slurm still knows of it (MinJobAge, 5 minutes as it comes).

    Raises:
        SetupError: There is no squeue, or it cannot say.
    """
    command = ["squeue", "--noheader", "--array", f"--format={'|'.join(_SHOWN)}"]
    command += ["--me"] * of_me + ["--states=all"] * and_ended
    if not is_installed():
        raise SetupError("there is no squeue on this machine; run this where Slurm's commands are, on a login node")
    for pause_s in (*_PAUSES_S, None):
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.returncode:
            break
        if pause_s is None:
            raise SetupError(f"squeue: {done.stderr.strip() or f'ended with {done.returncode}'}")
        time.sleep(pause_s)
    return [_task(line) for line in done.stdout.splitlines()]


def _task(line: str) -> QueuedTask:
    job, index, state, user, reason, nodes, name = line.split("|", len(_SHOWN) - 1)
    return QueuedTask(int(job), int(index) if index.isdigit() else None, state, user, reason, nodes, name)


def submit(script: Path, *options: str, remedy: str) -> int:
    """Hands a script to sbatch.

    Args:
        script: Its path.
        options: Of sbatch, which win over those in the script.
        remedy: What to do where sbatch refuses.

    Returns:
        The number of the job.

    Raises:
        SetupError: If there is no sbatch, or it refuses.
    """
    command = ["sbatch", "--parsable", *options, str(script)]
    if shutil.which("sbatch") is None:
        said = " ".join(["sbatch", *options, str(script)])
        raise SetupError(f"there is no sbatch on this machine; run this where there is one: {said}")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"sbatch {script}: {done.stderr.strip()}; {remedy}")
    return int(done.stdout.strip().partition(";")[0])


def directive(option: str) -> str:
    """A line of a script that gives an option of sbatch, written with or without its dashes.

    >>> directive("comment=two words")
    '#SBATCH --comment="two words"'
    >>> directive("-c=4")
    '#SBATCH -c 4'
    """
    name, equals, value = option.lstrip("-").partition("=")
    dashes = "-" if len(name) == 1 else "--"
    quoted = f'"{value}"' if re.search(r"\s", value) else value
    return f"#SBATCH {dashes}{name}{' ' if len(name) == 1 and equals else equals}{quoted}"


def log_folder(folder: Path) -> str:
    """A folder as `--output` takes it."""
    return str(folder.resolve()).replace("%", "%%")


def ranges(numbers: Sequence[int]) -> str:
    """Array indices in sbatch's form.

    >>> ranges([0, 1, 2, 7, 9, 10])
    '0-2,7,9-10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
