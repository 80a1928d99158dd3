"""A report cut into what the page shows: tables with columns, bars, charts with a legend, what arms read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_ext.recipe.study_schema import STAGE_KINDS, StageKind
from megatron_ext.study.page.charts import LineChart, line_chart
from megatron_ext.study.report.content import Curve, Report, TaskContamination
from megatron_ext.study.report.numbers import Cell, MetricInfo, Row

_CHARTS = {
    "loss": "Training loss, nats per token",
    "held_out": "Held-out loss, nats per token",
    "reward": "Reward, mean of a step",
    "pass_rate": "Right answers in training, share",
    "lr": "Learning rate",
}


@dataclass(frozen=True)
class Table:
    """One suite after one kind of stage.

    Attributes:
        stage: The kind.
        suite: Name of the suite.
        columns: Its numbers, the main one first.
        rows: Of the table.
        cells: Of each row, by the columns' order.
        baseline: Label of the row that differences are to; "" without.
    """

    stage: StageKind
    suite: str
    columns: tuple[MetricInfo, ...]
    rows: tuple[Row, ...]
    cells: tuple[tuple[Cell, ...], ...]
    baseline: str

    @property
    def key(self) -> str:
        """Of this table among others, for ids."""
        return f"{self.stage}-{self.suite}"


def tables_of(report: Report) -> list[Table]:
    """All tables, the last kind of stage first."""
    found = []
    for stage in reversed(STAGE_KINDS):
        rows = tuple(row for row in report.rows if row.stage == stage)
        infos = [one for one in report.metrics if one.stage == stage and one.role != "domain"]
        for suite in dict.fromkeys(one.suite for one in infos):
            columns = sorted((one for one in infos if one.suite == suite), key=lambda one: not one.is_main)
            cells = tuple(tuple(_cell(row, column) for column in columns) for row in rows)
            baseline = next((row.label for row in rows if row.is_baseline), "")
            found.append(Table(stage, suite, tuple(columns), rows, cells, baseline))
    return found


def _cell(row: Row, column: MetricInfo) -> Cell:
    return next(
        cell for cell in row.cells if (cell.suite, cell.metric, cell.role) == (column.suite, column.name, column.role)
    )


@dataclass(frozen=True)
class Bar:
    """One row's bar, in percent of the panel's width."""

    row: Row
    cell: Cell
    series: int
    length: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class BarPanel:
    """The bars of one domain, or of one task where tasks have no domain."""

    stage: StageKind
    suite: str
    info: MetricInfo
    end: float  # value at the right edge
    bars: tuple[Bar, ...]


def bar_panels(report: Report, stage: StageKind) -> list[BarPanel]:
    """A panel for each domain of each suite, all of one scale."""
    infos = [one for one in report.metrics if one.stage == stage and one.is_share]
    chosen = [one for one in infos if one.role == "domain"] or [one for one in infos if one.role == "task"]
    rows = [row for row in report.rows if row.stage == stage]
    cells = {(info.suite, info.name): [_cell(row, info) for row in rows] for info in chosen}
    estimates = [cell.estimate for found in cells.values() for cell in found if cell.estimate is not None]
    if not estimates:
        return []
    end = _round_up(max(max(one.value, one.high or 0.0) for one in estimates))
    panels = []
    for info in chosen:
        bars = []
        for number, (row, cell) in enumerate(zip(rows, cells[info.suite, info.name], strict=True)):
            one = cell.estimate
            low, high = (one.low, one.high) if one is not None else (None, None)
            ends = [None if at is None else 100 * at / end for at in (low, high)]
            bars.append(Bar(row, cell, number, 100 * one.value / end if one else 0.0, *ends))
        panels.append(BarPanel(stage, info.suite, info, end, tuple(bars)))
    return panels


def _round_up(share: float) -> float:
    """The next of 0.05, 0.1, 0.2, … 1."""
    return min(1.0, max(0.05, math.ceil(share * 10 - 1e-9) / 10)) if share > 0.05 else 0.05


@dataclass(frozen=True)
class CurveView:
    """The charts of one kind of stage.

    Attributes:
        stage: The kind.
        legend: Label and number of each series, with the arms behind it.
        charts: All of them.
        notes: What must be said of them.
    """

    stage: StageKind
    legend: tuple[tuple[str, int, tuple[str, ...]], ...]
    charts: tuple[LineChart, ...]
    notes: tuple[str, ...]


def curve_views(report: Report) -> list[CurveView]:
    """The charts of all kinds of stages that have curves, first kind first."""
    views = []
    for stage in STAGE_KINDS:
        curves = [curve for curve in report.curves if curve.stage == stage]
        if not curves:
            continue
        series = _series(report, stage, curves)
        keys = sorted(
            dict.fromkeys((one.quantity, one.source) for one in curves), key=lambda key: list(_CHARTS).index(key[0])
        )
        charts = []
        for quantity, source in keys:
            of_key = [one for one in curves if (one.quantity, one.source) == (quantity, source)]
            charts.append(line_chart(_title(stage, quantity, source), of_key, series))
        arms = {curve.label: curve.arms for curve in curves}
        legend = tuple((label, number, arms[label]) for label, number in series.items() if label in arms)
        views.append(CurveView(stage, legend, tuple(charts), tuple(_notes(curves))))
    return views


def _series(report: Report, stage: StageKind, curves: Sequence[Curve]) -> dict[str, int]:
    """Numbers of colours: those of the rows in tables and bars, then those of stages that no row ends with."""
    labels = [row.label for row in report.rows if row.stage == stage] + [curve.label for curve in curves]
    return {label: number for number, label in enumerate(dict.fromkeys(labels))}


def _title(stage: StageKind, quantity: str, source: str) -> str:
    title = "Right answers to held-out prompts, share" if (stage, quantity) == ("rl", "held_out") else _CHARTS[quantity]
    return f"{title}: {source}" if source else title


def _notes(curves: Sequence[Curve]) -> list[str]:
    notes = ["x: processed tokens, the stages of a chain behind each other."]
    losses = [curve for curve in curves if curve.quantity == "loss"]
    lines, points = sum(curve.lines for curve in losses), sum(len(curve.tokens) for curve in losses)
    if lines > points:
        notes.append(f"Points are means over neighbouring steps and seeds: {points:,} points of {lines:,} steps.")
    if any(curve.low for curve in curves):
        most = max(len(curve.stage_ids) for curve in curves)
        notes.append(f"Lines are means over up to {most} seeds, bands their smallest and largest.")
    return notes


@dataclass(frozen=True)
class ReadBar:
    """What one arm read in one kind of stage, in parts by source."""

    stage: StageKind
    tokens: int
    width: float  # percent of the widest of this kind
    parts: tuple[tuple[str, int, float], ...]  # source, number of its colour, percent of this bar
    state: str


def read_bars(report: Report) -> tuple[dict[str, list[ReadBar]], dict[str, int]]:
    """The bars of each arm, and the numbers of the sources' colours."""
    sources: dict[str, int] = {}
    sums: dict[tuple[str, StageKind], dict[str, int]] = {}
    states: dict[tuple[str, StageKind], str] = {}
    for arm in report.readings:
        for stage in arm.stages:
            key = (arm.arm, stage.stage)
            of_kind = sums.setdefault(key, {})
            states[key] = stage.state if states.get(key, "finished") == "finished" else states[key]
            for source in stage.sources:
                sources.setdefault(source.source, len(sources))
                of_kind[source.source] = of_kind.get(source.source, 0) + source.tokens
    widest = {
        kind: max((sum(of.values()) for key, of in sums.items() if key[1] == kind), default=0) for kind in STAGE_KINDS
    }
    found: dict[str, list[ReadBar]] = {}
    for (arm_id, kind), of_kind in sums.items():
        total = sum(of_kind.values())
        parts = tuple((name, sources[name], 100 * tokens / total) for name, tokens in of_kind.items()) if total else ()
        width = 100 * total / widest[kind] if widest[kind] else 0.0
        found.setdefault(arm_id, []).append(ReadBar(kind, total, width, parts, states[arm_id, kind]))
    return found, sources


def missing_counts(report: Report) -> str:
    """What has not finished, by state; "" where all has."""
    found = [one.state for one in report.missing]
    return ", ".join(f"{found.count(state)} {state}" for state in sorted(dict.fromkeys(found)))


def contamination_counts(report: Report) -> dict[str, int]:
    """How many pairs of task and row have each status."""
    found = [status for task in report.contamination for status in task.statuses.values()]
    return {status: found.count(status) for status in ("overlaps", "unknown", "clean", "not-applicable", "not run")}


def rows_by_status(task: TaskContamination) -> dict[str, list[str]]:
    """Of one task the rows of each status, with the items that overlap."""
    found: dict[str, list[str]] = {}
    for label, status in task.statuses.items():
        items = f" ({task.items[label]} items)" if label in task.items else ""
        found.setdefault(status, []).append(f"{label}{items}")
    return found
