"""Whether a study's findings ask for numbers that it will have, known before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_tools.strict_yaml import KeyPath
from megatron_ext.evaluate.suite import Suite, read_suite
from megatron_ext.recipe.problems import Problems, instead_of
from megatron_ext.recipe.study_load import LoadedStudy
from megatron_ext.recipe.study_schema import STAGE_KINDS, ComparisonRecipe, StageKind
from megatron_ext.study.nodes import PlannedStage

Suites = Mapping[StageKind, Sequence[Suite]]


def require_answerable(study: LoadedStudy, chains: Mapping[str, Sequence[PlannedStage]]) -> None:
    """Refuses findings of stages that an arm does not have, and of suites and metrics that nothing will measure.

    Args:
        study: Has the findings and the suites.
        chains: The stages of each arm, of one replicate.

    Raises:
        RecipeError: With all of them, each with its place and the nearest name.
    """
    if not study.recipe.findings:
        return
    suites = {kind: [read_suite(Path(file)) for file in study.suites[kind]] for kind in STAGE_KINDS}
    kinds = {arm: {stage.loaded.recipe.stage for stage in chain} for arm, chain in chains.items()}
    problems = Problems()
    for index, finding in enumerate(study.recipe.findings):
        for place, asked in enumerate(finding.comparisons):
            at: KeyPath = ("findings", index, "comparisons", place)
            for key, message in (*_of_stage(asked, kinds), *_of_metric(asked, suites[asked.stage])):
                problems.add(study.origin((*at, key)), (*at, key), message)
    problems.raise_recipe_error()


def _of_stage(asked: ComparisonRecipe, kinds: Mapping[str, set[StageKind]]) -> list[tuple[str, str]]:
    """Arms that have no stage of the kind."""
    without = [arm for arm in (*asked.better, *asked.than) if asked.stage not in kinds[arm]]
    if not without:
        return []
    shared = set.intersection(*(kinds[arm] for arm in (*asked.better, *asked.than)))
    there = ", ".join(kind for kind in STAGE_KINDS if kind in shared)
    has = "has" if len(without) == 1 else "have"
    return [("stage", f"{asked.stage}: {', '.join(without)} {has} no such stage; all its arms have: {there or 'none'}")]


def _of_metric(asked: ComparisonRecipe, suites: Sequence[Suite]) -> list[tuple[str, str]]:
    """A suite that does not judge the kind, or a number that it will not have."""
    if not suites:
        return [("stage", f"{asked.stage}: no suite judges this kind of stage; name one in evaluate.{asked.stage}")]
    names = [suite.name for suite in suites]
    if asked.suite and asked.suite not in names:
        return [("suite", f"{asked.suite}: judges no {asked.stage} stage; {instead_of(asked.suite, names)}")]
    meant = [suite for suite in suites if asked.suite in ("", suite.name)]
    known = list(dict.fromkeys(name for suite in meant for name in _numbers(suite)))
    tasks = [task.name for suite in meant for task in suite.requests()]
    is_part = any(asked.metric.startswith(f"{task}/") for task in tasks)  # of a task that gives several: TASK/PART
    if asked.metric in known or is_part:
        return []
    where = f"suite {meant[0].name}" if len(meant) == 1 else f"suites {', '.join(names)}"
    return [("metric", f"{asked.metric}: no aggregate, task or domain of {where}; {instead_of(asked.metric, known)}")]


def _numbers(suite: Suite) -> list[str]:
    """What a report will have of a suite: its means, its tasks, and a mean of each domain."""
    tasks = suite.requests()
    domains = [task.domain for task in tasks if task.domain]
    return [*(mean.name for mean in suite.aggregates), *(task.name for task in tasks), *domains]
