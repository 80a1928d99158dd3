"""What the study took, and what it was to take.

Time is that of the steps which stand in metrics.jsonl and of saving between them, and of each evaluation's last run.
Start-up, validation, and work that a killed run lost and did again are not in it. A stage that arms share is counted
once in the sums of the study and in each arm that needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from megatron_ext.evaluate.results import Results
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.study.lineage.lines import read_object
from megatron_ext.study.lineage.record import RunFacts
from megatron_ext.study.report.content import Costs, CostSum, StageCost
from megatron_ext.study.report.curves import StageMetrics
from megatron_ext.study.report.labels import StageGroup
from megatron_ext.study.report.provenance import Runs, hardware_of
from megatron_ext.study.state import NodeState, States
from megatron_ext.study.study_plan import StageNode, StudyPlan


def costs_of(
    plan: StudyPlan,
    groups: Sequence[StageGroup],
    metrics: Mapping[str, StageMetrics],
    states: States,
    results: Mapping[str, Results],
    runs: Runs,
) -> Costs:
    """The costs of all stages, and their sums by arm, by kind of stage, and of all."""
    stages = [
        _stage_cost(stage, group, metrics[stage.stage_id], states[stage.stage_id], plan, results, runs)
        for group in groups
        for stage in group.stages
    ]
    arms = [_sum(arm.id, [one for one in stages if arm.id in one.arms]) for arm in plan.arms]
    kinds = [
        _sum(kind, [one for one in stages if one.stage == kind]) for kind in dict.fromkeys(one.stage for one in stages)
    ]
    return Costs(
        stages=tuple(stages),
        arms=tuple(arms),
        kinds=tuple(kinds),
        total=_sum("all", stages),
        unread=len(unread_steps(plan, metrics)),
        processor=_processor(runs),
    )


def _processor(runs: Runs) -> Literal["processor", "GPU", "process"]:
    """What the processes ran on."""
    found = hardware_of(runs)
    if not found:
        return "process"
    return "processor" if all(name.startswith("cpu: ") for name in found) else "GPU"


def _stage_cost(
    stage: StageNode,
    group: StageGroup,
    metrics: StageMetrics,
    state: NodeState,
    plan: StudyPlan,
    results: Mapping[str, Results],
    runs: Runs,
) -> StageCost:
    folder = Path(plan.run_root) / "stages" / stage.stage_id
    counters = _counters(folder, metrics)
    step = counters.get("step")
    done = [results[node.node_id] for node in plan.evaluations_of(stage.stage_id) if node.node_id in results]
    return StageCost(
        stage_id=stage.stage_id,
        stage=stage.stage,
        label=group.label,
        replicate=stage.replicate,
        arms=stage.arms,
        state=state.state,
        reason=state.reason,
        planned_tokens=stage.tokens,
        planned_flops=stage.flops,
        planned_gpu_seconds=stage.gpu_seconds,
        tokens=counters.get("consumed_tokens"),
        sampled_tokens=counters.get("sampled_tokens"),
        flops=stage.flops * min(1.0, step / stage.total_steps) if step is not None and stage.total_steps else None,
        seconds=metrics.seconds if metrics.lines else None,
        processes=_processes(runs[stage.stage_id], stage) if metrics.lines else None,
        evaluations=len(plan.evaluations_of(stage.stage_id)),
        evaluation_seconds=sum(one.seconds for one in done) if done else None,
        evaluation_process_seconds=sum(one.seconds * one.engine.world_size for one in done) if done else None,
    )


def _counters(folder: Path, metrics: StageMetrics) -> dict[str, int]:
    """Steps and tokens: of stage.json, of the last line of metrics.jsonl where the stage is not finished."""
    counters = read_object(folder / STAGE_FILE).get("state") or metrics.last
    return {key: counters[key] for key in ("step", "consumed_tokens", "sampled_tokens") if key in counters}


def unread_steps(plan: StudyPlan, metrics: Mapping[str, StageMetrics]) -> list[str]:
    """Sentences on files of steps that cannot be read whole, or end before their stage did; one for each stage."""
    said = []
    for stage in plan.stages:
        folder, one = Path(plan.run_root) / "stages" / stage.stage_id, metrics[stage.stage_id]
        done, there = (read_object(folder / STAGE_FILE).get("state") or {}).get("step", 0), one.last.get("step", 0)
        parts = [f"{one.cut} of {one.lines + one.cut} lines cannot be read: cut by a kill"] if one.cut else []
        parts += [f"ends with step {there:,} of {done:,}: curves and time are of these alone"] if there < done else []
        if parts:
            said.append(f"{folder / 'metrics.jsonl'}: {'; '.join(parts)}")
    return said


def _processes(runs: Sequence[RunFacts], stage: StageNode) -> int:
    """Of the last run; of the layout where it did not record them."""
    return int((runs[-1].layout if runs else {}).get("world_size") or stage.world_size)


def _sum(label: str, stages: Iterable[StageCost]) -> CostSum:
    found = list(stages)
    times = [one.planned_gpu_seconds for one in found]
    return CostSum(
        label=label,
        stages=len(found),
        finished=sum(one.state == "finished" for one in found),
        planned_tokens=sum(one.planned_tokens for one in found),
        planned_flops=sum(one.planned_flops for one in found),
        planned_gpu_seconds=None if None in times else sum(time for time in times if time is not None),
        tokens=sum(one.tokens or 0 for one in found),
        flops=sum(one.flops or 0.0 for one in found),
        seconds=sum(one.seconds or 0.0 for one in found),
        evaluation_seconds=sum(one.evaluation_seconds or 0.0 for one in found),
        process_seconds=sum(one.process_seconds or 0.0 for one in found),
    )
