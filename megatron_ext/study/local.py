"""Runs nodes on this machine: a process group for each, no more at once than there are workers and GPUs.

The groups are sessions of their own. A terminal's Ctrl-C reaches the study alone, which passes it on; and whoever
kills the study kills none of its stages: the next `study run` finds them by launch.json and waits for them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_tools.errors import SetupError
from megatron_ext.study.launcher import (
    EXIT_LINE,
    LAUNCH_FILE,
    Launched,
    Sighting,
    Task,
    attempt_log,
    next_attempt,
    read_launched,
)
from megatron_ext.study.log_lines import last_lines
from megatron_ext.study.processes import ask_to_end, end_at_once, whereabouts

GPUS_OF = "CUDA_VISIBLE_DEVICES"
THREADS_OF = "OMP_NUM_THREADS"
_SAVING_S = 3600
"""How long torchrun waits for ranks that were asked to end: its own 30 s are too short to save a large model."""

_LOOK_S = 0.02


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
    takes_unready: bool = False
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

    def look(self, launched: Mapping[str, Launched]) -> Mapping[str, Sighting]:
        """Whether each still runs."""
        self._reap()
        return {name: _sighting(one) for name, one in launched.items()}

    def cancel(self, launched: Mapping[str, Launched], *, now: bool) -> None:
        """SIGTERM to the process group, or SIGKILL to all of it."""
        for one in launched.values():
            (end_at_once if now else ask_to_end)(one.handle)

    def own(self) -> set[str]:
        """Names of nodes that this launcher has started and that have not ended."""
        self._reap()
        return set(self._children)

    def _start(self, task: Task, gpus: Sequence[str]) -> Launched:
        task.folder.mkdir(parents=True, exist_ok=True)
        attempt = next_attempt(task.folder)
        before = Launched(kind=self.kind, attempt=attempt, at=time.time(), handle={"gpus": list(gpus)})
        shim = [sys.executable, "-m", "megatron_ext.study.local_child", str(task.folder / LAUNCH_FILE)]
        environment = os.environ | {THREADS_OF: str(self.threads_of(task.world_size))}
        if self.machine.gpus:
            environment[GPUS_OF] = ",".join(gpus)
        with attempt_log(task.folder, attempt).open("wb") as log:
            child = subprocess.Popen(
                [*shim, json.dumps(asdict(before)), *command_of(task)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._children[task.name] = child, attempt_log(task.folder, attempt)
        has_ended = False
        while not has_ended:
            has_ended = child.poll() is not None  # asked first: it may write and end between two looks
            written = read_launched(task.folder)
            if written is not None and written.attempt == attempt:
                return written  # from here on its files say that it runs, to whoever looks
            time.sleep(_LOOK_S)
        said = " ".join(last_lines(attempt_log(task.folder, attempt))[-1:])
        raise SetupError(f"its process ended with exit code {child.returncode} before it began: {said or 'no word'}")

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


def _sighting(launched: Launched) -> Sighting:
    where = whereabouts(launched.handle)
    if where == "elsewhere":
        host, pid = launched.handle["host"], launched.handle["pid"]
        note = f"process {pid} on {host}, into which this machine cannot look; if {host} is gone: rm its launch.json"
        return Sighting("running", note, is_reachable=False)
    return Sighting("running" if where == "alive" else "gone")


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
