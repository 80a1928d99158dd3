"""A study that has run, written as its runs and evaluations would have written it, with results that are made up.

Three bases (plain, and with two reasoning sets) share the first stage; each is fine-tuned, one is also trained with
rewards. What is written is drawn from a seed, so that every report of it is the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ext.datasets.ledger import LedgerRow
from megatron_ext.evaluate.kept_items import KeptItems, finish_items
from megatron_ext.evaluate.results import (
    Aggregate,
    CheckpointIdentity,
    Contamination,
    EngineFacts,
    Interval,
    Metric,
    Results,
    TaskResult,
    write_results,
)
from megatron_ext.recipe.study_schema import ComparisonRecipe, FindingRecipe, PaperNumbers, StageKind
from megatron_ext.study.nodes import cost_of, study_totals
from megatron_ext.study.study_plan import ArmPlan, EvaluationNode, StageNode, StudyPlan

SUITE = "toy"
FOLDER = "toy-1"
TASKS = {"sums": "math", "series": "math", "words": "general"}


@dataclass(frozen=True)
class MadeUp:
    """How a stage of the study answers: the chance of a right answer, by task, and how far seeds move it."""

    chance: dict[str, float]
    seed_deviation: float = 0.0


def write_suite(folder: Path) -> Path:
    """A suite of three tasks, a mean of two of them, and a mean over domains."""
    file = folder / "toy.yaml"
    tasks = "\n".join(
        f"  - {{task: 'verifiable:{name}.jsonl', name: {name}, domain: {domain}}}" for name, domain in TASKS.items()
    )
    file.write_text(
        f"suite: {SUITE}\ntasks:\n{tasks}\naggregates:\n  - {{name: math, mean_of: [sums, series]}}\n"
        "  - {name: general, mean_of: [words]}\n  - {name: average, mean_of: [math, general]}\n"
    )
    return file


def stage_node(
    stage: StageKind, name: str, *, parent: str | None, arms: Sequence[str], replicate: int = 0, tokens: int = 1_000
) -> StageNode:
    """A stage of the plan; its id is its kind, its name and its replicate."""
    return StageNode(
        stage_id=f"{stage}-{name}-{replicate}",
        stage=stage,
        recipe=f"recipes/toy/{stage}/{name}.yaml",
        overrides=(),
        parent=parent,
        takes=None if parent is None else "weights",
        replicate=replicate,
        seed=1 + replicate,
        arms=tuple(arms),
        is_provisional=False,
        model="toy",
        world_size=1,
        total_steps=10,
        tokens=tokens,
        sampled_tokens=tokens // 2 if stage == "rl" else 0,
        flops=6_000 * tokens,
        peak_memory_bytes=1,
        checkpoint_bytes=1,
        kept_checkpoints=1,
    )


def study_plan(run_root: Path, *, seeds: int = 2, bases: Sequence[str] = ("base", "ldq", "lmq")) -> StudyPlan:
    """Arms `BASE-shq`, and `BASE-shq-grpo` of the last base; a first stage that all share."""
    arms = {f"{base}-shq": base for base in bases} | {f"{bases[-1]}-shq-grpo": bases[-1]}
    stages: list[StageNode] = []
    chains: dict[str, list[tuple[str, ...]]] = {arm: [] for arm in arms}
    for number in range(seeds):
        first = stage_node("pretrain", "first", parent=None, arms=tuple(arms), replicate=number, tokens=2_000)
        stages.append(first)
        for base in bases:
            of_base = tuple(arm for arm, its in arms.items() if its == base)
            second = stage_node("pretrain", base, parent=first.stage_id, arms=of_base, replicate=number)
            third = stage_node("sft", f"shq_on_{base}", parent=second.stage_id, arms=of_base, replicate=number)
            chain = (first.stage_id, second.stage_id, third.stage_id)
            stages += [second, third]
            chains[f"{base}-shq"].append(chain)
            if base == bases[-1]:
                arm = f"{base}-shq-grpo"
                stages.append(stage_node("rl", "grpo", parent=third.stage_id, arms=(arm,), replicate=number))
                chains[arm].append((*chain, stages[-1].stage_id))
    suite = write_suite(run_root.parent)
    evaluations = tuple(
        EvaluationNode(
            node_id=f"{stage.stage_id}/{FOLDER}",
            stage_id=stage.stage_id,
            suite=str(suite),
            suite_name=SUITE,
            folder=FOLDER,
        )
        for stage in stages
        if "first" not in stage.stage_id
    )
    arm_plans = tuple(
        ArmPlan(
            id=arm,
            chains=tuple(found),
            recipes=tuple(next(s.recipe for s in stages if s.stage_id == one) for one in found[0]),
            cost=cost_of(stage for stage in stages if arm in stage.arms),
        )
        for arm, found in chains.items()
    )
    return StudyPlan(
        name="toy",
        path="recipes/toy/study.yaml",
        note="A study that nobody ran.",
        run_root=str(run_root),
        arms=arm_plans,
        stages=tuple(stages),
        evaluations=evaluations,
        varies=("data.blend",),
        baseline=f"{bases[0]}-shq",
        differences=(),
        findings=_findings(bases),
        totals=study_totals(arm_plans, stages, evaluations),
    )


def _findings(bases: Sequence[str]) -> tuple[FindingRecipe, ...]:
    paper = PaperNumbers(better=50.95, than=29.92, delta=21.03, source="docs/reference/paper.md#results")
    compared = ComparisonRecipe(
        better=(f"{bases[-1]}-shq",), than=(f"{bases[0]}-shq",), stage="sft", metric="average", paper=paper
    )
    after_rl = compared.model_copy(update={"stage": "rl", "better": (f"{bases[-1]}-shq-grpo",), "paper": None})
    return (
        FindingRecipe(name="front-loading-gain", says="Reasoning data in pretraining helps.", comparisons=(compared,)),
        FindingRecipe(name="gap-after-rl", says="The gap stays after rewards.", comparisons=(after_rl,)),
    )


def write_stage(run_root: Path, node: StageNode, *, sources: Sequence[str] = ("web", "traces")) -> None:
    """A finished stage: metrics, ledger, plan of its placement."""
    folder = run_root / "stages" / node.stage_id
    folder.mkdir(parents=True)
    draw = np.random.default_rng(node.seed)
    per_step = node.tokens // node.total_steps
    lines = []
    for step in range(1, node.total_steps + 1):
        loss = 2.0 + 6.0 * math.exp(-4 * step / node.total_steps) + 0.1 * draw.standard_normal()
        line = {
            "step": step,
            "consumed_samples": step,
            "consumed_tokens": step * per_step,
            "trained_tokens": step * per_step,
            "skipped_steps": 0,
            "loss": loss,
            "loss_by_source": dict.fromkeys(sources, loss),
            "validation": dict.fromkeys(sources, loss + 0.1) if step % 5 == 0 else {},
            "lr": 1e-3 * min(1.0, step / 3),
            "grad_norm": 1.0,
            "tokens_per_s": 100.0,
            "save_s": 0.0,
        }
        if node.stage == "rl":
            rate = 0.2 + 0.6 * step / node.total_steps
            line |= {"sampled_tokens": step * per_step // 2, "reward": rate, "pass_rate": rate}
            line["validation"] = {"prompts": rate, "prompts_low": 0.0, "prompts_high": 1.0} if step % 5 == 0 else {}
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "plan.json").write_text(json.dumps({"layout": {"world_size": node.world_size}}))
    share = node.tokens // len(sources)
    ledger = [
        LedgerRow(1, source, "general" if source == "web" else "math", f"id of {source}", planned=share, read=share)
        for source in sources
    ]
    rows = [row.to_json() | {"epochs": 0.5 + at, "first": share, "documents_first": 5} for at, row in enumerate(ledger)]
    state = {"step": node.total_steps, "consumed_tokens": node.tokens, "trained_tokens": node.tokens}
    state |= {"sampled_tokens": node.tokens // 2} if node.stage == "rl" else {}
    (folder / "stage.json").write_text(json.dumps({"stage_id": node.stage_id, "state": state, "ledger": rows}))


def write_evaluation(run_root: Path, node: StageNode, made_up: MadeUp, *, items: int = 100) -> Results:
    """The results of the suite: each item right by chance, the same items for every stage."""
    folder = run_root / "stages" / node.stage_id / "evaluations" / FOLDER
    folder.mkdir(parents=True)
    kept = KeptItems(folder, rank=0, lines=())
    tasks = []
    for number, (name, domain) in enumerate(TASKS.items()):
        hardness = np.random.default_rng(number).random(items)  # of the items: alike for all stages
        draw = np.random.default_rng([number, node.seed, len(node.stage_id)])
        moved = made_up.chance[name] + made_up.seed_deviation * float(draw.standard_normal())
        right = (0.7 * hardness + 0.3 * draw.random(items) < moved).astype(int)
        for item, score in enumerate(right):
            kept.add(name, f"{item:04d}", score=int(score), prompt="</script><b>what?</b>", text="42")
        tasks.append(_task(name, domain, float(right.mean()), items))
    kept.close()
    finish_items(folder)
    results = _results(node, tuple(tasks))
    write_results(folder, results)
    for part in folder.glob("samples.rank_*"):
        part.unlink()
    return results


def _task(name: str, domain: str, value: float, items: int) -> TaskResult:
    interval = Interval(low=max(0.0, value - 0.1), high=min(1.0, value + 0.1), method="wilson")
    return TaskResult(
        task=f"verifiable:{name}.jsonl",
        kind="verifiable",
        name=name,
        domain=domain,
        headline="avg@1",
        metrics=(Metric(name="avg@1", value=value, n=items, interval=interval),),
        items=items,
        data=f"{name}.jsonl",
        data_id=name,
        method="exact match",
        seed=1,
        contamination=Contamination(status="clean" if name != "words" else "unknown", note=""),
    )


def _results(node: StageNode, tasks: tuple[TaskResult, ...]) -> Results:
    value = {task.name: task.metric().value for task in tasks}
    math_mean = (value["sums"] + value["series"]) / 2
    return Results(
        name=FOLDER,
        created="2026-01-01T00:00:00+00:00",
        command="megatron-ext evaluate …",
        seconds=2.0,
        checkpoint=CheckpointIdentity(
            path=f"stages/{node.stage_id}/checkpoints/step_10",
            stage_id=node.stage_id,
            stage=node.stage,
            recipe=node.recipe,
            step=10,
            is_finished=True,
            fingerprint="f",
            model="toy",
            parameters=1_000,
            tokenizer_fingerprint="t",
            consumed_tokens=node.tokens,
            trained_tokens=node.tokens,
            sampled_tokens=0,
        ),
        engine=EngineFacts(
            name="megatron_ext",
            backend="local",
            dtype="float32",
            device="cpu",
            world_size=1,
            tensor_model_parallel_size=1,
            versions={},
        ),
        seed=1,
        options={},
        suite=SUITE,
        tasks=tasks,
        aggregates=(
            Aggregate(name="math", value=math_mean, rule="mean", of=("sums", "series")),
            Aggregate(name="general", value=value["words"], rule="mean", of=("words",)),
            Aggregate(name="average", value=(math_mean + value["words"]) / 2, rule="mean", of=("math", "general")),
        ),
    )


CHANCES = {"base": 0.3, "ldq": 0.4, "lmq": 0.5}


def write_study(folder: Path, *, seeds: int = 2, items: int = 100, skip: Sequence[str] = ()) -> StudyPlan:
    """The whole study; gives its plan.

    Args:
        folder: Into which everything is written; the run root is `runs` in it.
        seeds: Replicates of every stage.
        items: Of each task.
        skip: Ids of stages that have not run.
    """
    run_root = folder / "runs"
    run_root.mkdir()
    plan = study_plan(run_root, seeds=seeds)
    for stage in plan.stages:
        if stage.stage_id in skip:
            continue
        write_stage(run_root, stage)
        if "first" not in stage.stage_id:
            base = next(base for base in CHANCES if any(arm.startswith(f"{base}-") for arm in stage.arms))
            chance = CHANCES[base] + {"pretrain": 0.0, "sft": 0.15, "rl": 0.25}[stage.stage]
            write_evaluation(run_root, stage, MadeUp(dict.fromkeys(TASKS, chance), 0.03), items=items)
    return plan
