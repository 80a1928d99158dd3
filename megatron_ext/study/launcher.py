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
| handle  | how it is found again; local: pid, start_ticks, boot_id, host, gpus; slurm: its own |

NODE is a stage id, or `<stage id>.<folder>` of an evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from data_tools.atomic_files import write_atomically

if TYPE_CHECKING:  # the process of a node reads this file too, and is to be quick
    from megatron_ext.study.study_plan import EvaluationNode, StageNode

LAUNCH_FILE = "launch.json"
STUDIES = "studies"

ASKED_TO_STOP = "study: asked to stop"
"""Begins the line that whoever stops a node writes into its log first: so its end is known for no failure."""

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
    """What is remembered of the newest start of a node; launch.json holds this."""

    kind: str
    attempt: int
    at: float
    command: tuple[str, ...] = ()
    handle: Mapping[str, Any] = field(default_factory=dict)

    def log(self, folder: Path) -> Path:
        """What the attempt has printed; `folder` is the node's."""
        return attempt_log(folder, self.attempt)


@dataclass(frozen=True)
class Sighting:
    """What a launcher sees of a start.

    Attributes:
        place: Gone is whatever neither waits nor runs; how it ended, its files say.
        note: Why it waits, where it is, or how the launcher says that it ended.
        is_reachable: Whether it can be looked at and stopped from this machine; else it is taken to go on.
    """

    place: Literal["queued", "running", "gone"]
    note: str = ""
    is_reachable: bool = True


class Launcher(Protocol):
    """Starts tasks, finds them again after any death of the study's own process, and stops them."""

    kind: str
    takes_unready: bool
    """Whether it takes tasks whose `after` is not finished: then all are given to it at once, and nobody waits."""

    def launch(self, tasks: Sequence[Task]) -> None:
        """Starts tasks, parents first, and writes launch.json of each.

        Raises:
            SetupError: They cannot be started here.
        """

    def look(self, launched: Mapping[str, Launched]) -> Mapping[str, Sighting]:
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
    write_atomically(folder / LAUNCH_FILE, (json.dumps(asdict(launched), indent=1) + "\n").encode())


def read_launched(folder: Path) -> Launched | None:
    """What is remembered of the newest start; None where there was none, or a disk that was full cut the file."""
    try:
        said = json.loads((folder / LAUNCH_FILE).read_bytes())
        return Launched(**{**said, "command": tuple(said["command"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def say_asked_to_stop(folders: Iterable[Path], how: str) -> None:
    """Writes into the newest log of each node that it was asked to stop; call it before it is."""
    for folder in folders:
        launched = read_launched(folder)
        if launched is not None:
            with launched.log(folder).open("a") as log:
                log.write(f"{ASKED_TO_STOP}: {how}\n")
