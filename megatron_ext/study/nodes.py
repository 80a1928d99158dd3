"""Planned stages and suites as the nodes of a study's graph, and what all of them take."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.evaluate.suite import read_suite
from megatron_ext.plan.cost import gpu_time, with_gpu_memory
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.study_load import LoadedArm
from megatron_ext.recipe.study_schema import STAGE_KINDS, StageKind
from megatron_ext.study.study_plan import ArmPlan, Cost, EvaluationNode, Hardware, StageNode, StudyTotals, Takes


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


def cost_of(stages: Iterable[StageNode]) -> Cost:
    """Sums over stages."""
    counted = list(stages)
    seconds = [stage.gpu_seconds for stage in counted if stage.gpu_seconds is not None]
    return Cost(
        tokens=sum(stage.tokens for stage in counted),
        sampled_tokens=sum(stage.sampled_tokens for stage in counted),
        flops=sum(stage.flops for stage in counted),
        disk_bytes=sum(stage.disk_bytes for stage in counted),
        gpu_seconds=sum(seconds) if seconds else None,
    )


def arm_plan(arm: LoadedArm, chains: Sequence[Sequence[PlannedStage]], stages: Mapping[str, StageNode]) -> ArmPlan:
    """An arm and what it takes alone."""
    ids = tuple(tuple(stage.plan.stage_id for stage in chain) for chain in chains)
    own = dict.fromkeys(stage_id for chain in ids for stage_id in chain)
    cost = cost_of(stages[stage_id] for stage_id in own)
    return ArmPlan(id=arm.id, chains=ids, recipes=arm.recipes, note=arm.note, cost=cost)


def study_totals(
    arms: Sequence[ArmPlan], stages: Sequence[StageNode], evaluations: Sequence[EvaluationNode]
) -> StudyTotals:
    """Sums over the graph, and over the arms as if each trained its own stages."""
    by_id = {stage.stage_id: stage for stage in stages}
    alone = [by_id[one] for arm in arms for one in dict.fromkeys(one for chain in arm.chains for one in chain)]
    return StudyTotals(
        arms=len(arms),
        chain_stages=len(alone),
        unique_stages=len(stages),
        evaluations=len(evaluations),
        cost=cost_of(stages),
        unshared=cost_of(alone),
    )
