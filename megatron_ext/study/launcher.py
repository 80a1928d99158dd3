"""What every launcher takes and gives: a task, what is remembered of its start, what is seen of it now.

A study remembers a start in `RUN_ROOT/studies/STUDY/nodes/NODE/`:

- `attempt_N.log`: what attempt N printed; the newest has the highest N
- `launch.json`: of the newest attempt

| field   | meaning |
|---------|---------|
| kind    | which launcher: local, slurm |
| attempt | N |
| at      | when, in seconds since 1970 |
| command | what was started |
| handle  | how it is found again; local: gpus, and what identifies the process (processes.py); slurm: job, log |

NODE is a stage id, or `<stage id>.<folder>` of an evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from data_tools.atomic_files import write_atomically

if TYPE_CHECKING:  # the process of a node reads this file too, and is to be quick
    from megatron_ext.study.study_plan import EvaluationNode, StageNode

LAUNCH_FILE = "launch.json"
STUDIES = "studies"

ASKED_TO_STOP = "study: asked to stop"
"""Begins the line that whoever stops a node writes into its log first: so its end is known for no failure."""

ENDED_AT_ONCE = "study: ended at once"
"""Likewise, of whoever does not let it save."""

EXIT_LINE = "study: exit code"
"""Begins the line that a launcher which has seen a process end writes behind its log, followed by the code."""


@dataclass(frozen=True)
class Task:
    """One node as a launcher starts it.

    Attributes:
        node: What it is.
        name: Its folder below `nodes/`.
        module: What Python runs, behind torchrun where `world_size` is more than 1.
        arguments: Of the module.
        world_size: Processes, one for each GPU where there are any.
        after: Names of nodes that must finish first; () where all of them have.
        folder: RUN_ROOT/studies/STUDY/nodes/NAME; the launcher makes it.
    """

    node: StageNode | EvaluationNode
    name: str
    module: str
    arguments: tuple[str, ...]
    world_size: int
    after: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Launched:
    """What is remembered of the newest start of a node; launch.json holds this, but for `folder`, where it lies."""

    kind: str
    attempt: int
    at: float
    command: tuple[str, ...] = ()
    handle: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def log(self) -> Path:
        """What the attempt has printed."""
        return attempt_log(self.folder, self.attempt)


@dataclass(frozen=True)
class JobStatus:
    """What a launcher knows of a start.

    Attributes:
        status: Gone is whatever neither waits nor runs; how it ended, its files say.
        note: Why it waits, where it is, or how the launcher says that it ended.
        is_reachable: Whether it can be looked at and stopped from this machine; else it is taken to go on.
    """

    status: Literal["queued", "running", "gone"]
    note: str = ""
    is_reachable: bool = True


class Launcher(Protocol):
    """Finds starts of its kind again after any death of the study's own process, and stops them.

    How tasks are started is each launcher's own.
    """

    kind: str

    def poll(self, launched: Mapping[str, Launched]) -> Mapping[str, JobStatus]:
        """What became of starts of this kind, by the node's name."""

    def cancel(self, launched: Mapping[str, Launched], *, now: bool) -> None:
        """Asks starts of this kind to save and end, or ends them at once. Does not wait."""


def study_folder(run_root: Path, study: str) -> Path:
    """Where a study remembers what it has started."""
    return run_root / STUDIES / study


def node_folder(run_root: Path, study: str, name: str) -> Path:
    """Where it remembers the starts of one node."""
    return study_folder(run_root, study) / "nodes" / name


def attempt_log(folder: Path, attempt: int) -> Path:
    """What an attempt has printed."""
    return folder / f"attempt_{attempt}.log"


def next_attempt(folder: Path) -> int:
    """The number of the attempt that comes next in a node's folder."""
    numbers = [int(log.stem.removeprefix("attempt_")) for log in folder.glob("attempt_*.log")]
    return max(numbers, default=0) + 1


def write_launched(folder: Path, launched: Launched) -> None:
    """Remembers a start."""
    said = asdict(launched)
    del said["folder"]
    write_atomically(folder / LAUNCH_FILE, (json.dumps(said, indent=1) + "\n").encode())


def read_launched(folder: Path) -> Launched | None:
    """What is remembered of the newest start; None where there was none, or a disk that was full cut the file."""
    try:
        said = json.loads((folder / LAUNCH_FILE).read_bytes())
        return replace(Launched(**said), command=tuple(said["command"]), folder=folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def say_asked_to_stop(launched: Iterable[Launched], how: str, *, now: bool = False) -> None:
    """Writes into the log of each start that it was asked to stop, or is ended at once; call it before it is."""
    for one in launched:
        with one.log.open("a") as log:
            log.write(f"{ENDED_AT_ONCE if now else ASKED_TO_STOP}: {how}\n")


def statuses(launched: Mapping[str, Launched], launchers: Iterable[Launcher]) -> dict[str, JobStatus]:
    """What each start does now, asked of the launcher of its kind; one of which nothing was started is not asked."""
    found: dict[str, JobStatus] = {}
    for launcher in launchers:
        of_its_kind = {name: one for name, one in launched.items() if one.kind == launcher.kind}
        if of_its_kind:
            found |= launcher.poll(of_its_kind)
    return found
