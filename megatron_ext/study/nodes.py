"""Planned stages and suites as the nodes of a study's graph, and what all of them take."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ext.evaluate.suite import read_suite
from megatron_ext.plan.cost import gpu_time, with_gpu_memory
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.study_schema import STAGE_KINDS, StageKind
from megatron_ext.study.study_plan import ArmPlan, EvaluationNode, StageNode, StudyTotals, Takes

if TYPE_CHECKING:
    from megatron_ext.study.make import Hardware


@dataclass(frozen=True)
class PlannedStage:
    """One stage of some arms.

    Attributes:
        loaded: Its recipe, with what is set over it.
        plan: Its plan.
        overrides: `--set` options that give this stage from the recipe file.
        parent: Id of the stage before it.
        takes: What it takes of that.
        replicate: 0 has the recipe's own seed.
    """

    loaded: LoadedRecipe
    plan: StagePlan
    overrides: tuple[str, ...]
    parent: str | None
    takes: Takes | None
    replicate: int


def stage_node(stage: PlannedStage, *, arms: tuple[str, ...], hardware: Hardware | None) -> StageNode:
    """A stage as a node of the graph."""
    plan, seconds = stage.plan, None
    if hardware is not None:
        time = gpu_time(plan, mfu=hardware.mfu, gpu=hardware.gpu)
        plan = with_gpu_memory(plan)
        seconds = time.gpu_hours * 3600 if time is not None else None
    assert plan.cost is not None, "a plan made from a recipe has its cost"
    assert plan.stage != "import", "a recipe is trained"
    rl = plan.rl.options if plan.rl is not None else None
    return StageNode(
        stage_id=plan.stage_id,
        stage=plan.stage,
        recipe=stage.loaded.path,
        overrides=stage.overrides,
        parent=stage.parent,
        takes=stage.takes,
        replicate=stage.replicate,
        seed=plan.seed,
        arms=arms,
        is_provisional="-provisional-" in plan.stage_id,
        model=plan.model.name,
        world_size=plan.layout.world_size,
        total_steps=plan.batch.total_steps,
        tokens=plan.batch.total_tokens,
        sampled_tokens=plan.batch.total_samples * rl.samples_per_prompt * rl.max_new_tokens if rl is not None else 0,
        flops=plan.cost.total_flops,
        peak_memory_bytes=max(memory.total for memory in plan.cost.memory),
        checkpoint_bytes=plan.cost.checkpoint_bytes,
        kept_checkpoints=plan.cost.kept_checkpoints,
        gpu_seconds=seconds,
    )


def evaluation_nodes(
    files: Mapping[StageKind, Sequence[str]], arms: Sequence[ArmPlan], stages: Sequence[StageNode]
) -> Iterator[EvaluationNode]:
    """Each suite of a kind on each stage with which an arm ends that kind."""
    kinds = {stage.stage_id: stage.stage for stage in stages}
    judged: dict[str, None] = {}
    for arm in arms:
        for chain in arm.chains:
            judged |= dict.fromkeys({kinds[stage_id]: stage_id for stage_id in chain}.values())
    suites = {
        kind: [(file, read_suite(Path(file)).name, _digest(file)) for file in files[kind]] for kind in STAGE_KINDS
    }
    for stage in stages:
        for file, name, digest in suites[stage.stage] if stage.stage_id in judged else ():
            folder = f"{name}-{digest}"
            yield EvaluationNode(
                node_id=f"{stage.stage_id}/{folder}",
                stage_id=stage.stage_id,
                suite=file,
                suite_name=name,
                folder=folder,
            )


def _digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8]


def study_totals(
    arms: Sequence[ArmPlan], stages: Sequence[StageNode], evaluations: Sequence[EvaluationNode]
) -> StudyTotals:
    """Sums over the graph, and over the arms as if each trained its own stages."""
    by_id = {stage.stage_id: stage for stage in stages}
    alone = [by_id[stage_id] for arm in arms for stage_id in dict.fromkeys(one for c in arm.chains for one in c)]
    seconds = [stage.gpu_seconds for stage in stages if stage.gpu_seconds is not None]
    return StudyTotals(
        arms=len(arms),
        chain_stages=len(alone),
        unique_stages=len(stages),
        evaluations=len(evaluations),
        tokens=sum(stage.tokens for stage in stages),
        unshared_tokens=sum(stage.tokens for stage in alone),
        flops=sum(stage.flops for stage in stages),
        unshared_flops=sum(stage.flops for stage in alone),
        disk_bytes=sum(stage.disk_bytes for stage in stages),
        gpu_seconds=sum(seconds) if seconds else None,
    )
