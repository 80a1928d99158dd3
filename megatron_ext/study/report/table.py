"""Arms x metrics: every number with its interval, its difference to the baseline, and who is best; that in short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_tools.errors import RecipeError
from megatron_ext.evaluate.suite import read_suite
from megatron_ext.recipe.locate import locate
from megatron_ext.recipe.study_schema import StageKind
from megatron_ext.study.report.evaluated import Evaluated, PlannedRow, suites_of
from megatron_ext.study.report.measured import Measured, measure_suite
from megatron_ext.study.report.numbers import (
    Cell,
    ContaminationStatus,
    Drawn,
    MetricInfo,
    NoNumber,
    Replicate,
    Row,
)
from megatron_ext.study.state import States
from megatron_ext.study.study_plan import EvaluationNode, StudyPlan

_ABOUT: dict[Drawn, str] = {
    "nothing": "no interval: its items were not kept, and there is one seed",
    "seeds": "the interval is of seeds alone: its items were not kept",
}


class EvaluatedSuite:
    """One suite after one kind of stage, read and measured.

    Args:
        plan: The study.
        node: One evaluation of the suite.
        rows: Of the kind of stage.
        found: What evaluations found, by node.

    Attributes:
        results: Of each row its evaluated replicates.
        measured: Its numbers; () where nothing has been evaluated.
    """

    def __init__(
        self, plan: StudyPlan, node: EvaluationNode, rows: Sequence[PlannedRow], found: Mapping[str, Evaluated]
    ) -> None:
        self.stage: StageKind = rows[0].stage
        self.suite = node.suite_name
        self.rows = rows
        self.nodes = [[f"{stage.stage_id}/{node.folder}" for stage in row.stages] for row in rows]
        self.results = [[found[one] for one in nodes if one in found] for nodes in self.nodes]
        self.measured: list[Measured] = []
        self._main = plan.main_metrics.get(self.stage)
        if any(self.results):
            self.measured = measure_suite(self.stage, self.suite, self.results, self._main)
        known = [one.info.name for one in self.measured]
        self.unmeasured = [  # one task can give several numbers, whose names begin with its own
            info
            for info in _planned_metrics(node, self.stage, self._main)
            if not any(name == info.name or (info.role == "task" and name.startswith(info.name)) for name in known)
        ]

    def why_main(self, info: MetricInfo) -> str:
        """Why a number is the main one, in words."""
        if info.name == self._main:
            return "the number that most findings ask for"
        if info.role == "aggregate":
            return "the suite's last mean"
        tasks = [one for one in (*(one.info for one in self.measured), *self.unmeasured) if one.role == "task"]
        return "the suite's only task" if len(tasks) == 1 else "the suite's first task, for it has no mean"

    def metric(self, name: str) -> Measured | None:
        """The numbers of a name: an aggregate or a task, else the mean of a domain."""
        return next((one for one in self.measured if one.info.name in (name, f"domain:{name}")), None)

    def tasks_of(self, name: str, of: Sequence[str]) -> set[str]:
        """The tasks behind a number: its own, or those of the means that it is made of."""
        if not of:
            return {name}
        parts = [one for one in (self.metric(part) for part in of) if one is not None]
        return {task for part in parts for task in self.tasks_of(part.info.name, part.info.of)}


def evaluated_suites(
    plan: StudyPlan, rows: Sequence[PlannedRow], found: Mapping[str, Evaluated]
) -> list[EvaluatedSuite]:
    """All suites of all kinds of stages.

    Args:
        plan: The study.
        rows: `rows_of` it.
        found: `read_evaluations` of it.
    """
    suites = []
    for kind in dict.fromkeys(row.stage for row in rows):
        of_kind = [row for row in rows if row.stage == kind]
        suites += [EvaluatedSuite(plan, node, of_kind, found) for node in suites_of(plan, kind)]
    return suites


def is_elsewhere(suite: str) -> bool:
    """Whether a suite's file is not on this machine: then its columns are those that its results have."""
    try:
        locate(suite)
    except RecipeError:
        return not Path(suite).exists()
    return False


def _planned_metrics(node: EvaluationNode, stage: StageKind, main: str | None) -> list[MetricInfo]:
    """What a suite's file says that it will have, for columns of what has not run."""
    if is_elsewhere(node.suite):
        return []
    suite = read_suite(Path(node.suite))
    aggregates = {one.name: "" for one in reversed(suite.aggregates)}
    tasks = {one.name: one.domain for one in suite.requests()}
    chosen = main if main in aggregates or main in tasks else next(iter(aggregates | tasks), None)
    return [
        MetricInfo(
            stage=stage,
            suite=node.suite_name,
            name=name,
            role="aggregate" if name in aggregates else "task",
            domain=domain,
            is_share=True,
            is_higher_better=True,
            is_main=name == chosen,
        )
        for name, domain in (aggregates | tasks).items()
    ]


def rows_with_cells(
    plan: StudyPlan, rows: Sequence[PlannedRow], suites: Sequence[EvaluatedSuite], states: States
) -> list[Row]:
    """The rows of all tables."""
    found = []
    for row in rows:
        cells: list[Cell] = []
        seeds_run = 0
        for suite in (suite for suite in suites if row in suite.rows):
            at = suite.rows.index(row)
            seeds_run = max(seeds_run, len(suite.results[at]))
            baseline = next((number for number, one in enumerate(suite.rows) if one.is_baseline), None)
            why = _why_missing(suite, at, states)
            cells += [_cell(one, at, baseline, suite, why) for one in suite.measured]
            cells += [_not_run(info, suite, why) for info in suite.unmeasured]
        found.append(
            Row(
                stage=row.stage,
                label=row.label,
                arms=row.arms,
                recipes=row.recipes,
                stage_ids=tuple(stage.stage_id for stage in row.stages),
                seeds_planned=len(row.stages),
                seeds_run=seeds_run,
                seeds_by_stage=_seeds_by_stage(plan, row),
                is_baseline=row.is_baseline,
                cells=tuple(cells),
            )
        )
    return found


def _seeds_by_stage(plan: StudyPlan, row: PlannedRow) -> dict[StageKind, int]:
    """How many stages of each kind stand behind the replicates of a row, at its end."""
    found: dict[StageKind, set[str]] = {}
    for end in row.stages:
        stage = end
        ends_seen: set[StageKind] = set()
        while True:
            if stage.stage not in ends_seen:
                found.setdefault(stage.stage, set()).add(stage.stage_id)
                ends_seen.add(stage.stage)
            if stage.parent is None:
                break
            stage = plan.stage(stage.parent)
    return {kind: len(stages) for kind, stages in reversed(found.items())}


def _cell(one: Measured, at: int, baseline: int | None, suite: EvaluatedSuite, why: tuple[NoNumber, str]) -> Cell:
    if not one.values[at]:
        return _not_run(one.info, suite, why)
    best = one.best_rows()
    has_delta = baseline is not None and baseline != at
    notes = [] if baseline is None or one.are_comparable([at, baseline]) else ["asked or counted otherwise"]
    notes += [_ABOUT[one.drawn([at])]] if one.drawn([at]) in _ABOUT else []
    return Cell(
        metric=one.info.name,
        suite=suite.suite,
        role=one.info.role,
        state="found",
        estimate=one.estimate(at),
        delta=one.difference([at], [baseline]) if has_delta and baseline is not None else None,
        replicates=tuple(
            Replicate(replicate=number, seed=stage.seed, stage_id=stage.stage_id, value=one.values[at][number])
            for stage in suite.rows[at].stages
            if (number := stage.replicate) in one.values[at]
        ),
        items=one.info.items,
        is_best=at in best and len([values for values in one.values if values]) > 1,
        best_ratio=one.best_ratios().get(at),
        drawn=one.drawn([at]),
        contamination=_contamination(one, at, suite),
        notes=tuple(notes),
    )


def _contamination(one: Measured, at: int, suite: EvaluatedSuite) -> ContaminationStatus:
    """The worst status of the tasks that a number is made of."""
    of = suite.tasks_of(one.info.name, one.info.of)
    found = {task.contamination.status for got in suite.results[at] for task in got.results.tasks if task.name in of}
    order: tuple[ContaminationStatus, ...] = ("overlaps", "unknown", "clean", "not-applicable")
    return next((status for status in order if status in found), "unknown")


def _why_missing(suite: EvaluatedSuite, at: int, states: States) -> tuple[NoNumber, str]:
    """State and reason of a number that a row does not have."""
    if suite.results[at]:
        return "not run", "its results do not have it"
    found = [states[node] for node in suite.nodes[at] if node in states]
    if failed := next((one for one in found if one.state == "failed"), None):
        return "failed", failed.reason
    if any(one.state == "running" for one in found):
        return "running", "its evaluation is running"
    reasons = dict.fromkeys(one.reason for one in found if one.reason)
    return "not run", "; ".join(reasons) or "nothing of this row has been evaluated"


def _not_run(info: MetricInfo, suite: EvaluatedSuite, why: tuple[NoNumber, str]) -> Cell:
    state, reason = why
    return Cell(
        metric=info.name, suite=suite.suite, role=info.role, state=state, reason=reason, contamination="not run"
    )
