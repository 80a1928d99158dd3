"""The nodes of a study as tasks: what is run for each, and what must be finished before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_ext.evaluate.results import RESULTS
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.study.launcher import Task, node_folder
from megatron_ext.study.stale import why_stale
from megatron_ext.study.study_plan import EvaluationNode, StageNode, StudyPlan

Node = StageNode | EvaluationNode


def nodes_of(plan: StudyPlan) -> Iterator[Node]:
    """Every node, parents before those that need them: a stage's evaluations stand behind it."""
    for stage in plan.stages:
        yield stage
        yield from plan.evaluations_of(stage.stage_id)


def node_name(node: Node) -> str:
    """The name of a node: of its folder below `nodes/`, and on the command line."""
    return node.stage_id if isinstance(node, StageNode) else f"{node.stage_id}.{node.folder}"


def parent_of(node: Node) -> str | None:
    """The stage that must be finished before a node begins."""
    return node.parent if isinstance(node, StageNode) else node.stage_id


def stage_folder(run_root: Path, stage_id: str) -> Path:
    """Where a stage lies."""
    return run_root / "stages" / stage_id


def work_folder(run_root: Path, node: Node) -> Path:
    """Where a node leaves what it makes, and holds its lock."""
    folder = stage_folder(run_root, node.stage_id)
    return folder if isinstance(node, StageNode) else folder / "evaluations" / node.folder


def is_finished(run_root: Path, node: Node) -> bool:
    """Whether the file is there that is written last, and an evaluation is one of what its stage is now."""
    work = work_folder(run_root, node)
    if isinstance(node, StageNode):
        return (work / STAGE_FILE).is_file()
    return (work / RESULTS).is_file() and not why_stale(work)


def make_task(plan: StudyPlan, node: Node, run_root: Path, *, site: str | Path | None = None) -> Task:
    """A node as a launcher starts it.

    Args:
        plan: The study.
        node: Of it.
        run_root: Folder that holds `stages/` and `studies/`.
        site: A site file; None takes the default.
    """
    parent = parent_of(node)
    is_ready = parent is None or is_finished(run_root, plan.stage(parent))
    if isinstance(node, StageNode):
        module, arguments, world_size = "megatron_ext.run", _run_arguments(node, run_root, site), node.world_size
    else:
        module, arguments, world_size = "megatron_ext", _evaluate_arguments(node, run_root), 1
    name = node_name(node)
    return Task(
        node=node,
        name=name,
        module=module,
        arguments=arguments,
        world_size=world_size,
        after=() if is_ready or parent is None else (parent,),
        folder=node_folder(run_root, plan.name, name),
    )


def _run_arguments(stage: StageNode, run_root: Path, site: str | Path | None) -> tuple[str, ...]:
    sets = [part for override in stage.overrides for part in ("--set", override)]
    place = ["--site", str(site)] if site is not None else []
    return (stage.recipe, *sets, *place, "--run-root", str(run_root))


def _evaluate_arguments(one: EvaluationNode, run_root: Path) -> tuple[str, ...]:
    return (
        "evaluate",
        str(stage_folder(run_root, one.stage_id)),
        "--suite",
        one.suite,
        "--name",
        one.folder,
        "--set-aside",
    )
