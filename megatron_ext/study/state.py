"""What is true of every node of a study now: told from its files and its processes, and from nothing else.

| state    | true when |
|----------|-----------|
| finished | stage.json is there, or results.json of that stage's weights and of the questions of now (stale.py) |
| running  | a process holds the folder's lock, or the one of launch.json lives |
| queued   | the launcher has it, and it waits there |
| blocked  | a stage before it has failed |
| stopped  | it was asked to end and did, or people ended it at once; the next run goes on with it |
| failed   | it was begun and ended otherwise |
| waiting  | nothing of the above: nobody has begun it |

How it ended: of exit.json and the newest attempt's log the later one says it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data_tools.atomic_files import is_being_written
from megatron_ext.evaluate.results import RESULTS
from megatron_ext.study.launcher import (
    ASKED_TO_STOP,
    ENDED_AT_ONCE,
    EXIT_LINE,
    LAUNCH_FILE,
    JobStatus,
    Launched,
    Launcher,
    node_folder,
    read_launched,
    statuses,
)
from megatron_ext.study.log_lines import last_lines
from megatron_ext.study.progress import Progress, read_progress
from megatron_ext.study.stale import why_stale
from megatron_ext.study.study_plan import EvaluationNode, StageNode, StudyPlan
from megatron_ext.study.tasks import Node, is_finished, node_name, nodes_of, parent_of, work_folder

State = Literal["finished", "running", "queued", "blocked", "stopped", "failed", "waiting"]

_STOPPED = "StoppedError"
"""`reason` in exit.json of a run that was asked to end, and has saved what it had if it had anything."""

_KILLED = "ended without a word: killed (out of memory?), or the machine went down"
_EXIT = re.compile(rf"^(?:{EXIT_LINE}|megatron_ext\.run: exit code) (-?\d+)(?: \((\w+)\))?")
_ERROR = re.compile(r"^(?:error: |\w*(?:Error|Exception|Interrupt)\b)")


@dataclass(frozen=True)
class NodeState:
    """What is true of a node.

    Attributes:
        name: Of its folder.
        state: One of the table above.
        reason: Why it failed, stopped, waits or is blocked; "" where there is nothing to say.
        log: The newest attempt's; None where this study has not begun it.
        attempts: How often this study has begun it.
        is_ours: Whether what runs was begun by this study, and can be reached from this machine.
        progress: Of a stage that was begun.
    """

    name: str
    state: State
    reason: str = ""
    log: Path | None = None
    attempts: int = 0
    is_ours: bool = False
    progress: Progress | None = None


States = Mapping[str, NodeState]
"""Of every node of a study, by its name."""


def node_states(
    plan: StudyPlan, run_root: Path, launchers: Iterable[Launcher], *, with_progress: bool = False
) -> dict[str, NodeState]:
    """The state of every node, by its name, in the order of the plan. Reads only.

    Args:
        plan: The study.
        run_root: Folder that holds `stages/` and `studies/`.
        launchers: Find again what they have started, each what is of its kind.
        with_progress: Whether metrics.jsonl is read too.
    """
    nodes = {node_name(node): node for node in nodes_of(plan)}
    started = {
        name: launched
        for name in nodes
        if (launched := read_launched(node_folder(run_root, plan.name, name))) is not None
    }
    unfinished = {name: one for name, one in started.items() if not is_finished(run_root, nodes[name])}
    jobs = statuses(unfinished, launchers)
    found: dict[str, NodeState] = {}
    for name, node in nodes.items():
        folder = node_folder(run_root, plan.name, name)
        state = _state_of(node, run_root, folder, started.get(name), jobs.get(name))
        parent = parent_of(node)
        if state.state in ("waiting", "stopped", "failed") and parent is not None and parent in found:
            state = _behind(state, found[parent])
        if with_progress and isinstance(node, StageNode):
            state = replace(state, progress=read_progress(work_folder(run_root, node), node))
        found[name] = state
    return found


def _state_of(node: Node, run_root: Path, folder: Path, launched: Launched | None, job: JobStatus | None) -> NodeState:
    """The state of a node whatever stands before it."""
    work = work_folder(run_root, node)
    log = launched.log if launched is not None else None
    state = NodeState(node_name(node), "waiting", log=log, attempts=launched.attempt if launched is not None else 0)
    if is_finished(run_root, node):
        return replace(state, state="finished")
    if job is not None and job.status != "gone":
        return replace(state, state=job.status, reason=job.note, is_ours=job.is_reachable)
    if is_being_written(f"{work}/"):
        return replace(state, state="running", reason="begun by another command than this study's")
    if is_finished(run_root, node):  # in this moment
        return replace(state, state="finished")
    if isinstance(node, EvaluationNode) and (why := _stale_since(work, folder / LAUNCH_FILE)):
        return replace(state, reason=why)
    ending = _ending(work / "exit.json", folder / LAUNCH_FILE, log)
    if ending is None:
        return state
    how, reason = ending
    return replace(state, state=how, reason=f"{reason} ({job.note})" if job is not None and job.note else reason)


def _stale_since(work: Path, launch_file: Path) -> str:
    """What is wrong with results that lie there; "" where there are none, or something was begun after them."""
    written, launched = _written_at(work / RESULTS), _written_at(launch_file)
    if written is None or (launched is not None and launched > written):
        return ""
    return why_stale(work)


def _behind(state: NodeState, parent: NodeState) -> NodeState:
    """A node that nothing runs yet, behind a stage that has failed or is itself behind such a one."""
    if parent.state not in ("failed", "blocked"):
        return state
    first = parent.name if parent.state == "failed" else parent.reason.removesuffix(" failed")
    return replace(state, state="blocked", reason=f"{first} failed")


def _ending(exit_file: Path, launch_file: Path, log: Path | None) -> tuple[Literal["failed", "stopped"], str] | None:
    """How a node ended that did not finish, and why; None where it was never begun, or is to be trained again."""
    written, launched = _written_at(exit_file), _written_at(launch_file)
    if written is not None and (launched is None or written >= launched):
        return _said_by_exit_file(exit_file)
    return _said_by_log(log) if launched is not None and log is not None else None


def _said_by_exit_file(file: Path) -> tuple[Literal["failed", "stopped"], str] | None:
    try:
        ending = json.loads(file.read_bytes())
        code, how, message = ending["code"], ending["reason"], str(ending["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return "failed", f"{file.name}: damaged"
    if code == 0 and how == "finished":  # and stage.json was removed, which is how a stage is trained on
        return None
    gist = message.strip().partition("\n")[0]
    return ("stopped", gist) if how == _STOPPED else ("failed", gist if code == 0 else f"exit code {code}: {gist}")


def _said_by_log(log: Path) -> tuple[Literal["failed", "stopped"], str] | None:
    if not log.exists():  # it waited in a queue and never began
        return None
    lines = [line.rstrip() for line in last_lines(log) if line.strip()]
    for said in (ENDED_AT_ONCE, ASKED_TO_STOP):  # at once counts also where it was asked before to save
        if asked := next((line for line in reversed(lines) if line.startswith(said)), None):
            return "stopped", asked.removeprefix("study: ")
    exits = [match for line in lines if (match := _EXIT.match(line))]
    error = next((line for line in reversed(lines) if _ERROR.match(line)), "")
    if exits:
        code, killer = exits[-1].groups()
        reason = f"killed by {killer}" if killer else f"exit code {code}"
        return "failed", reason + (f": {error.removeprefix('error: ')}" if error else "")
    return "failed", _KILLED


def _written_at(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None
