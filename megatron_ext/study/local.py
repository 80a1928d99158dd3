"""Runs nodes on this machine: a process group for each, no more at once than there are workers and GPUs.

The groups are sessions of their own. A terminal's Ctrl-C reaches the study alone, which passes it on; and whoever
kills the study kills none of its stages: the next `study run` finds them by launch.json and waits for them.

No node runs unknown, whenever the study is killed: its process waits until launch.json names it (local_child.py). All
of a node's processes hold the lock of its log, by which another container of this machine tells whether it runs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_tools.errors import SetupError
from megatron_ext.study.launcher import (
    EXIT_LINE,
    JobStatus,
    Launched,
    Task,
    next_attempt,
    write_launched,
)
from megatron_ext.study.processes import ask_to_end, end_at_once, identity_of, is_of_this_boot, process_status

GPUS_OF = "CUDA_VISIBLE_DEVICES"
THREADS_OF = "OMP_NUM_THREADS"
_SAVING_S = 3600
"""How long torchrun waits for ranks that were asked to end: its own 30 s are too short to save a large model."""


@dataclass(frozen=True)
class Machine:
    """What the nodes of a study share here.

    Attributes:
        cores: That this process may use.
        gpus: Ids as CUDA_VISIBLE_DEVICES takes them; () where there are none.
    """

    cores: int
    gpus: tuple[str, ...]

    @classmethod
    def found(cls) -> Machine:
        """This machine, as this process may use it."""
        return cls(cores=len(os.sched_getaffinity(0)), gpus=_gpus())


@dataclass
class LocalLauncher:
    """Starts nodes as child processes.

    Args:
        workers: Nodes at once.
        machine: Shared by them.
    """

    workers: int
    machine: Machine
    kind: str = "local"
    _children: dict[str, tuple[subprocess.Popen[bytes], Path]] = field(default_factory=dict)

    def has_room(self, task: Task, running: Mapping[str, Launched]) -> bool:
        """Whether a task may start beside those that run."""
        if len(running) >= self.workers:
            return False
        return not self.machine.gpus or len(self._free_gpus(running)) >= task.world_size

    def threads_of(self, world_size: int) -> int:
        """OMP_NUM_THREADS of each process: the user's, else an equal share of the cores, so that no two fight for one.

        Two processes of two threads on two cores train some 40 times more slowly than two of one thread.
        """
        if said := os.environ.get(THREADS_OF, "").strip():
            return int(said) if said.isdigit() and int(said) else 1
        return max(1, self.machine.cores // (self.workers * world_size))

    def require(self, tasks: Sequence[Task]) -> None:
        """Refuses tasks that this machine can never start.

        Raises:
            SetupError: With each of them.
        """
        gpus = len(self.machine.gpus)
        wide = [task for task in tasks if gpus and task.world_size > gpus]
        if wide:
            lines = "".join(f"\n  {task.name}: {task.world_size} GPUs" for task in wide)
            raise SetupError(
                f"this machine has {gpus} GPUs, and {len(wide)} nodes of the study need more:{lines}\n"
                "  Run them where there are more (--launcher slurm), or give their layouts fewer ranks."
            )

    def launch(self, tasks: Sequence[Task], *, running: Mapping[str, Launched] | None = None) -> None:
        """Starts tasks; `running` says which GPUs are taken."""
        taken = dict(running or {})
        for task in tasks:
            taken[task.name] = self._start(task, self._free_gpus(taken)[: task.world_size])

    def poll(self, launched: Mapping[str, Launched]) -> Mapping[str, JobStatus]:
        """Whether each still runs."""
        self._reap()
        return {name: _job_status(one) for name, one in launched.items()}

    def cancel(self, launched: Mapping[str, Launched], *, now: bool) -> None:
        """SIGTERM to the process group, or SIGKILL to all of it."""
        for one in launched.values():
            (end_at_once if now else ask_to_end)(one.handle)

    def _start(self, task: Task, gpus: Sequence[str]) -> Launched:
        task.folder.mkdir(parents=True, exist_ok=True)
        start = Launched(
            kind=self.kind,
            attempt=next_attempt(task.folder),
            at=time.time(),
            command=tuple(command_of(task)),
            handle={"gpus": list(gpus)},
            folder=task.folder,
        )
        environment = os.environ | {THREADS_OF: str(self.threads_of(task.world_size))}
        if self.machine.gpus:
            environment[GPUS_OF] = ",".join(gpus)
        with start.log.open("wb") as log:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(log, fcntl.LOCK_EX)
            child = subprocess.Popen(
                [sys.executable, "-m", "megatron_ext.study.local_child", str(task.folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._children[task.name] = child, start.log
        assert child.stdin is not None
        with child.stdin:  # it begins when this is closed, if launch.json names it then
            start = replace(start, handle={**start.handle, **identity_of(child.pid)})
            write_launched(task.folder, start)
        return start

    def _free_gpus(self, running: Mapping[str, Launched]) -> list[str]:
        taken = {gpu for one in running.values() for gpu in one.handle.get("gpus", ())}
        return [gpu for gpu in self.machine.gpus if gpu not in taken]

    def _reap(self) -> None:
        """Writes behind the log of each child that has ended how it did; nobody else can ever ask."""
        for name, (child, log) in list(self._children.items()):
            if (code := child.poll()) is None:
                continue
            del self._children[name]
            with suppress(OSError), log.open("a") as file:  # a full disk is what may have ended it
                file.write(f"{EXIT_LINE} {code}{_signal_of(code)}\n")


def command_of(task: Task) -> list[str]:
    """What a node is on this machine: Python, behind torchrun where it is more than one process."""
    launcher = [sys.executable, "-m"]
    if task.world_size > 1:
        ranks = [f"--nproc-per-node={task.world_size}", f"--shutdown-timeout={_SAVING_S}"]
        launcher += ["torch.distributed.run", "--standalone", *ranks, "-m"]
    return [*launcher, task.module, *task.arguments]


def _job_status(launched: Launched) -> JobStatus:
    status = process_status(launched.handle)
    if status != "elsewhere":
        return JobStatus("running" if status == "alive" else "gone")
    host, pid = launched.handle["host"], launched.handle["pid"]
    if not is_of_this_boot(launched.handle):
        note = f"process {pid} on {host}, into which this machine cannot look; if {host} is gone: rm its launch.json"
        return JobStatus("running", note, is_reachable=False)
    if not _is_locked(launched.log):
        return JobStatus("gone")
    note = f"process {pid} in container {host} of this machine, into which this one cannot look"
    return JobStatus("running", note, is_reachable=False)


def _is_locked(log: Path) -> bool:
    """Whether a process of this machine, in whichever container, writes a log."""
    try:
        with log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a disk without locks: then nothing tells of it
        return log.exists()
    return False


def _signal_of(code: int) -> str:
    with suppress(ValueError):
        return f" ({signal.Signals(-code).name})" if code < 0 else ""
    return ""


def _gpus() -> tuple[str, ...]:
    """GPUs that this process may use: as its environment says, else as the driver does."""
    said = os.environ.get(GPUS_OF)
    if said is not None:
        return tuple(gpu for gpu in said.split(",") if gpu and gpu != "-1")
    if shutil.which("nvidia-smi") is None:
        return ()
    asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return tuple(done.stdout.split()) if done.returncode == 0 else ()
