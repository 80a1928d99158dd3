"""Which rows a study's tables have, and what evaluations found for each of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_tools.errors import DataError
from megatron_ext.evaluate.compare import scores_by_task
from megatron_ext.evaluate.kept_items import read_items
from megatron_ext.evaluate.results import RESULTS, Results, TaskResult, evaluate_again, read_results
from megatron_ext.recipe.study_schema import STAGE_KINDS, STAGE_NAMES, StageKind
from megatron_ext.study.report.bootstrap import ItemScores
from megatron_ext.study.stale import why_stale
from megatron_ext.study.study_plan import EvaluationNode, StageNode, StudyPlan

_SAME_MEAN = 1e-6
"""Items whose mean is further than this from the metric are not what the metric is the mean of."""


@dataclass(frozen=True)
class PlannedRow:
    """What arms have in common up to the end of a kind of stage.

    Attributes:
        stage: The kind.
        label: An arm's id where an arm ends here, else what the ids of its arms have in common, else the names of its
            last recipes.
        arms: Ids of the arms that pass through.
        recipes: Paths of the chain up to here.
        stages: The last stage, of each replicate.
        is_baseline: Whether the study's baseline ends here, or would if it went on to this kind.
    """

    stage: StageKind
    label: str
    arms: tuple[str, ...]
    recipes: tuple[str, ...]
    stages: tuple[StageNode, ...]
    is_baseline: bool


@dataclass(frozen=True)
class Evaluated:
    """One suite's results of one replicate of a row.

    Attributes:
        replicate: Its number.
        results: Of the suite.
        scores: Of the items of each task; a task whose headline is not the mean of its items is not in it.
        chain: Ids of the stages behind it, first to last; () where they are not known.
    """

    replicate: int
    results: Results
    scores: dict[str, ItemScores]
    chain: tuple[str, ...] = ()

    def task(self, name: str) -> TaskResult | None:
        """The result of a task."""
        return next((task for task in self.results.tasks if task.name == name), None)


def rows_of(plan: StudyPlan) -> list[PlannedRow]:
    """The rows of all kinds of stages: arms with the same stages up to the end of a kind are one row."""
    rows = []
    for kind in STAGE_KINDS:
        chains: dict[tuple[str, ...], list[str]] = {}
        for arm in plan.arms:
            if ends := tuple(stage.stage_id for stage in plan.stages_after(arm.id, kind)):
                chains.setdefault(ends, []).append(arm.id)
        labels = _labels(plan, kind, chains)
        baseline = _baseline_at(plan, kind)
        for ends, arms in chains.items():
            stages = tuple(plan.stage(stage_id) for stage_id in ends)
            length = plan.arm(arms[0]).chains[0].index(ends[0]) + 1
            recipes = plan.arm(arms[0]).recipes[:length]
            rows.append(PlannedRow(kind, labels[ends], tuple(arms), recipes, stages, baseline in arms))
    return rows


def _baseline_at(plan: StudyPlan, kind: StageKind) -> str | None:
    """The baseline; where it has no stage of a kind, the first arm that goes on from its end to one."""
    if plan.baseline is None or plan.stages_after(plan.baseline, kind):
        return plan.baseline
    begin = plan.arm(plan.baseline).chains[0]
    going_on = (arm.id for arm in plan.arms if arm.chains[0][: len(begin)] == begin and plan.stages_after(arm.id, kind))
    return next(going_on, None)


def _labels(plan: StudyPlan, kind: StageKind, chains: dict[tuple[str, ...], list[str]]) -> dict[tuple[str, ...], str]:
    """A name for each row, each another one."""
    found: dict[tuple[str, ...], str] = {}
    for ends, arms in chains.items():
        chain = plan.arm(arms[0])
        stems = [Path(recipe).stem for recipe in chain.recipes[: chain.chains[0].index(ends[0]) + 1]]
        recipes = (" → ".join(stems[-count:]) for count in range(1, len(stems) + 1))
        tries = (*_names_of_arms(plan, kind, ends[0], arms), *recipes)
        found[ends] = next((label for label in tries if label not in found.values()), f"{stems[-1]} ({ends[0]})")
    return found


def _names_of_arms(plan: StudyPlan, kind: StageKind, end: str, arms: Sequence[str]) -> list[str]:
    """The arm that ends here; else what the ids of all arms that pass through begin with, if anything."""
    if ending := [arm for arm in arms if plan.arm(arm).chains[0][-1] == end]:
        return ending[:1]
    parts = zip(*(arm.split("-") for arm in arms), strict=False)
    shared = "-".join(part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts))
    if any(arm.id == shared for arm in plan.arms):
        return [f"{shared} up to {STAGE_NAMES[kind]}"]
    return [shared] if shared else []


def suites_of(plan: StudyPlan, kind: StageKind) -> list[EvaluationNode]:
    """One evaluation of each suite that judges a kind of stage."""
    stages = {stage.stage_id for stage in plan.stages if stage.stage == kind}
    found: dict[str, EvaluationNode] = {}
    for node in plan.evaluations:
        if node.stage_id in stages:
            found.setdefault(node.folder, node)
    return list(found.values())


def read_evaluations(plan: StudyPlan) -> dict[str, Evaluated]:
    """What all evaluations of a study found, by node; those that have not finished, or are stale, are left out.

    Raises:
        DataError: Results or their items are damaged.
    """
    found = {}
    for node in plan.evaluations:
        folder = Path(plan.run_root) / "stages" / node.stage_id / "evaluations" / node.folder
        if not why_stale(folder) and (one := read_evaluation(folder, plan.stage(node.stage_id).replicate)) is not None:
            found[node.node_id] = replace(one, chain=tuple(_chain(plan, node.stage_id)))
    return found


def _chain(plan: StudyPlan, stage_id: str) -> list[str]:
    parent = plan.stage(stage_id).parent
    return [*(_chain(plan, parent) if parent is not None else ()), stage_id]


def read_evaluation(folder: Path, replicate: int) -> Evaluated | None:
    """What lies in the folder of one evaluation; None where it has not finished.

    Raises:
        DataError: Results or their items are damaged.
    """
    if not (folder / RESULTS).is_file():
        return None
    results = read_results(folder)
    return Evaluated(replicate, results, _scores(folder, results))


def _scores(folder: Path, results: Results) -> dict[str, ItemScores]:
    found = {}
    for name, by_item in scores_by_task(read_items(folder)).items():
        task = next((task for task in results.tasks if task.name == name), None)
        items = tuple(sorted(by_item))
        pairs = np.asarray([by_item[item] for item in items], np.float64)
        scores = ItemScores(items, pairs[:, 0], pairs[:, 1])
        if task is None:
            raise DataError(f"{folder}: items of {name}, which results.json does not have; {evaluate_again(folder)}")
        if abs(scores.mean - task.metric().value) <= _SAME_MEAN * max(1.0, abs(scores.mean)):
            found[name] = scores
    return found
