"""Arms x metrics: every number with its interval, its difference to the baseline, and who is best; that in short."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_ext.evaluate.options import options_of
from megatron_ext.evaluate.suite import read_suite
from megatron_ext.recipe.study_schema import StageKind
from megatron_ext.study.report.content import Cell, ContaminationStatus, Drawn, Headline, MetricInfo, Replicate, Row
from megatron_ext.study.report.judged import Judged, PlannedRow, judged, suites_of
from megatron_ext.study.report.measured import Measured, measure_suite
from megatron_ext.study.study_plan import EvaluationNode, StudyPlan

_ABOUT: dict[Drawn, str] = {
    "nothing": "no interval: its items were not kept, and there is one seed",
    "seeds": "the interval is of seeds alone: its items were not kept",
}


class JudgedSuite:
    """One suite after one kind of stage, read and measured.

    Args:
        plan: The study.
        node: One evaluation of the suite.
        rows: Of the kind of stage.

    Attributes:
        results: Of each row its judged replicates.
        measured: Its numbers; () where nothing has been evaluated.
    """

    def __init__(self, plan: StudyPlan, node: EvaluationNode, rows: Sequence[PlannedRow]) -> None:
        self.stage: StageKind = rows[0].stage
        self.suite = node.suite_name
        self.rows = rows
        self.results: list[list[Judged]] = [judged(row.stages, node.folder, Path(plan.run_root)) for row in rows]
        self.measured: list[Measured] = []
        main = _main_metric(plan, self.stage, self.suite)
        if any(self.results):
            self.measured = measure_suite(self.stage, self.suite, self.results, main)
        known = [one.info.name for one in self.measured]
        self.unmeasured = [  # one task can give several numbers, whose names begin with its own
            info
            for info in _planned_metrics(node, self.stage, main)
            if not any(name == info.name or (info.role == "task" and name.startswith(info.name)) for name in known)
        ]

    def metric(self, name: str) -> Measured | None:
        """The numbers of a name: an aggregate or a task, else the mean of a domain."""
        return next((one for one in self.measured if one.info.name == name), None)

    def tasks_of(self, name: str, of: Sequence[str]) -> set[str]:
        """The tasks behind a number: its own, or those of the means that it is made of."""
        if not of:
            return {name}
        parts = [one for one in (self.metric(part) for part in of) if one is not None]
        return {task for part in parts for task in self.tasks_of(part.info.name, part.info.of)}


def judged_suites(plan: StudyPlan, rows: Sequence[PlannedRow]) -> list[JudgedSuite]:
    """All suites of all kinds of stages."""
    found = []
    for kind in dict.fromkeys(row.stage for row in rows):
        of_kind = [row for row in rows if row.stage == kind]
        found += [JudgedSuite(plan, node, of_kind) for node in suites_of(plan, kind)]
    return found


def _main_metric(plan: StudyPlan, stage: StageKind, suite: str) -> str | None:
    """The metric that the study's findings ask for most often."""
    asked = [one.metric for finding in plan.findings for one in finding.comparisons if one.stage == stage]
    return max(asked, key=asked.count) if asked else None


def _planned_metrics(node: EvaluationNode, stage: StageKind, main: str | None) -> list[MetricInfo]:
    """What a suite's file says that it will have, for columns of what has not run."""
    suite = read_suite(Path(node.suite))
    aggregates = {one.name: "" for one in reversed(suite.aggregates)}
    tasks = {one.name: one.domain for one in suite.requests(options_of(suite.options, said="options:"))}
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


def rows_with_cells(plan: StudyPlan, rows: Sequence[PlannedRow], suites: Sequence[JudgedSuite]) -> list[Row]:
    """The rows of all tables."""
    found = []
    for row in rows:
        cells: list[Cell] = []
        seeds_run = 0
        for suite in (suite for suite in suites if row in suite.rows):
            at = suite.rows.index(row)
            seeds_run = max(seeds_run, len(suite.results[at]))
            baseline = next((number for number, one in enumerate(suite.rows) if one.is_baseline), None)
            cells += [_cell(one, at, baseline, suite) for one in suite.measured]
            cells += [_not_run(info, suite, at) for info in suite.unmeasured]
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


def _cell(one: Measured, at: int, baseline: int | None, suite: JudgedSuite) -> Cell:
    if not one.values[at]:
        return _not_run(one.info, suite, at)
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


def _contamination(one: Measured, at: int, suite: JudgedSuite) -> ContaminationStatus:
    """The worst status of the tasks that a number is made of."""
    of = suite.tasks_of(one.info.name, one.info.of)
    found = {task.contamination.status for got in suite.results[at] for task in got.results.tasks if task.name in of}
    order: tuple[ContaminationStatus, ...] = ("overlaps", "unknown", "clean", "not-applicable")
    return next((status for status in order if status in found), "unknown")


def _not_run(info: MetricInfo, suite: JudgedSuite, at: int) -> Cell:
    reason = "nothing of this row has been evaluated" if not suite.results[at] else "its results do not have it"
    return Cell(
        metric=info.name, suite=suite.suite, role=info.role, state="not run", reason=reason, contamination="not run"
    )


def headline_of(suite: JudgedSuite) -> Headline:
    """A suite's main number in short."""
    main = next((one for one in suite.measured if one.info.is_main), None)
    if main is None or not (best := main.best_rows()):
        info = next((info for info in suite.unmeasured if info.is_main), None)
        name = main.info.name if main else info.name if info else ""
        return Headline(stage=suite.stage, suite=suite.suite, metric=name, best=None, rows=len(suite.rows))
    judged_rows = [row for row, values in enumerate(main.values) if values]
    others = [row for row in judged_rows if row != best[0]]
    sign = 1 if main.info.is_higher_better else -1
    second = max(others, key=lambda row: sign * (main.value(row) or 0.0), default=None)
    baseline = next((row for row in judged_rows if suite.rows[row].is_baseline), None)
    seeds = [len(main.values[row]) for row in judged_rows]
    return Headline(
        stage=suite.stage,
        suite=suite.suite,
        metric=main.info.name,
        best=suite.rows[best[0]].label,
        tied=tuple(suite.rows[row].label for row in best) if len(best) > 1 else (),
        value=main.estimate(best[0]),
        baseline=suite.rows[baseline].label if baseline is not None else None,
        over_baseline=main.difference([best[0]], [baseline]) if baseline not in (None, best[0]) else None,
        second=suite.rows[second].label if second is not None else None,
        over_second=main.difference([best[0]], [second]) if second is not None else None,
        best_ratio=main.best_ratios().get(best[0]),
        drawn=main.drawn(judged_rows),
        seeds=(min(seeds), max(seeds)),
        items=main.info.items,
        judged=len(judged_rows),
        rows=len(suite.rows),
    )
