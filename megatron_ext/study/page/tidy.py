"""The report as one tidy table: a line for each number, for spreadsheets and data frames.

| column    | holds |
|-----------|-------|
| arm       | id of an arm, or of a study's sum `all` |
| stage     | pretrain, sft, rl; empty for what is of a whole arm |
| metric    | a task, a mean of tasks, `domain:NAME`, `read:SOURCE`, or `cost:…` |
| replicate | number of the seed, from 0; `mean` over seeds; `delta` to the baseline, `best_ratio`; |
|           | of costs `all` seeds |
| value     | share in [0, 1], nats, tokens, FLOPs or seconds; empty: not run |
| low, high | ends of the 95 % interval; empty: none |
| n         | items |
| unit      | of values: share, nats per token, bits per byte, tokens, FLOPs, s; empty: none, or not known |
| better    | higher, lower; `delta` is of lower turned round, so that more is better |
| suite     | of evaluations |
| state     | found, not run |
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from megatron_ext.study.report.content import CostSum, Report
from megatron_ext.study.report.numbers import Cell, Estimate, MetricInfo, Row

COLUMNS = ("arm", "stage", "metric", "replicate", "value", "low", "high", "n", "unit", "better", "suite", "state")

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""A text that begins so is run by a spreadsheet that opens it."""

_Line = dict[str, str | int | float | None]


def tidy_csv(report: Report) -> str:
    """The table.

    An arm that shares a row with others has lines of its own; texts that a spreadsheet would run as formulas stand
    behind an apostrophe.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for line in (*_results(report), *_readings(report), *_costs(report)):
        writer.writerow({name: _safe(cell) for name, cell in line.items() if cell is not None})
    return text.getvalue()


def _safe(cell: str | int | float | None) -> str | int | float | None:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else cell


def _results(report: Report) -> Iterator[_Line]:
    infos = {(one.stage, one.suite, one.name, one.role): one for one in report.metrics}
    for row in report.rows:
        for cell in row.cells:
            for arm in row.arms:
                yield from _of_cell(arm, row, cell, infos[row.stage, cell.suite, cell.metric, cell.role])


def _of_cell(arm: str, row: Row, cell: Cell, info: MetricInfo) -> Iterator[_Line]:
    common: _Line = {"arm": arm, "stage": row.stage, "metric": cell.metric, "n": cell.items}
    common |= {"suite": cell.suite, "state": cell.state}
    better = "" if not info.unit else "higher" if info.is_higher_better else "lower"
    number = common | {"unit": info.unit, "better": better}
    yield number | {"replicate": "mean"} | _ends(cell.estimate)
    for one in cell.replicates:
        yield number | {"replicate": one.replicate, "value": one.value}
    if cell.delta is not None:
        yield number | {"replicate": "delta"} | _ends(cell.delta)
    if cell.best_ratio is not None:
        yield common | {"replicate": "best_ratio", "value": cell.best_ratio, "unit": "share", "better": "higher"}


def _ends(estimate: Estimate | None) -> _Line:
    return {} if estimate is None else {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _readings(report: Report) -> Iterator[_Line]:
    for reading in report.readings:
        for stage in reading.stages:
            common: _Line = {"arm": reading.arm, "stage": stage.stage, "replicate": 0, "state": "found"}
            for source in stage.sources:
                yield common | {"metric": f"read:{source.source}", "value": source.tokens, "unit": "tokens"}
            if not stage.sources:
                yield common | {"metric": "read", "state": "not run"}


def _costs(report: Report) -> Iterator[_Line]:
    for one in (report.costs.total, *report.costs.arms):
        for name in (name for name in CostSum.model_fields if name != "label"):
            line: _Line = {"arm": one.label, "metric": f"cost:{name}", "replicate": "all", "state": "found"}
            yield line | {"value": getattr(one, name), "unit": _unit_of_cost(name)}


def _unit_of_cost(name: str) -> str:
    """By the last word of a field's name.

    >>> _unit_of_cost("planned_flops"), _unit_of_cost("process_seconds"), _unit_of_cost("finished")
    ('FLOPs', 's', '')
    """
    return {"tokens": "tokens", "flops": "FLOPs", "seconds": "s"}.get(name.rpartition("_")[2], "")
