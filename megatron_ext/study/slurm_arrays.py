"""Which nodes of a study share an array of Slurm, and the name of its job, by which it is found again.

<node>:<task>,<node>:<task>,…@<first 8 hex digits of the sha256 of RUN_ROOT's path>
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_tools.slurm import QueuedTask
from megatron_ext.study.launcher import Task
from megatron_ext.study.study_plan import StageNode, StudyPlan

NAME_CHARACTERS = 250
"""Of a job's name: Slurm takes 1,024, its accounting database 255."""

Array = dict[int, Task]
"""What the tasks of an array run, by their numbers, which are replicates."""


def arrays_of(tasks: Sequence[Task], plan: StudyPlan) -> list[Array]:
    """Tasks that differ in nothing but seeds together; an array stands behind those that it may have to wait for.

    Args:
        tasks: Of the plan.
        plan: The study.
    """
    depth: dict[str, int] = {}
    arrays: dict[tuple[object, ...], Array] = {}
    for task in tasks:
        depth[task.name] = max((depth[parent] + 1 for parent in task.after if parent in depth), default=0)
        sort, replicate = _sort_and_replicate(task, plan)
        array = arrays.setdefault(sort, {})
        assert replicate not in array, f"{task.name} and {array[replicate].name} are one replicate"
        array[replicate] = task
    ordered = sorted(arrays.values(), key=lambda array: max(depth[task.name] for task in array.values()))
    return [part for array in ordered for part in _with_short_names(array)]


def _sort_and_replicate(task: Task, plan: StudyPlan) -> tuple[tuple[object, ...], int]:
    """What all seeds of a task have in common, and which of them it is."""
    node = task.node
    stage = node if isinstance(node, StageNode) else plan.stage(node.stage_id)
    suite = "" if isinstance(node, StageNode) else node.folder
    return (*_recipes(stage, plan), stage.arms, suite), stage.replicate


def _recipes(stage: StageNode, plan: StudyPlan) -> tuple[str, ...]:
    """Of a stage and all before it: an arm may have one recipe twice."""
    before = _recipes(plan.stage(stage.parent), plan) if stage.parent is not None else ()
    return (*before, stage.recipe)


def _with_short_names(array: Array) -> Iterator[Array]:
    part: Array = {}
    for index, task in array.items():
        if part and len(job_name(part | {index: task}, Path())) > NAME_CHARACTERS:
            yield part
            part = {}
        part[index] = task
    yield part


def job_name(array: Mapping[int, Task], run_root: Path) -> str:
    """The name of an array's job."""
    return f"{','.join(f'{task.name}:{index}' for index, task in array.items())}@{_mark(run_root)}"


def by_node(queue: Sequence[QueuedTask], run_root: Path) -> dict[str, QueuedTask]:
    """What of a queue runs nodes of a run root, by the names of the nodes."""
    found: dict[str, QueuedTask] = {}
    for task in queue:
        members, _, mark = task.name.rpartition("@")
        if mark == _mark(run_root):
            named = (member.rpartition(":") for member in members.split(","))
            found |= {node: task for node, _, index in named if index == str(task.index)}
    return found


def _mark(run_root: Path) -> str:
    return hashlib.sha256(bytes(run_root.resolve())).hexdigest()[:8]
