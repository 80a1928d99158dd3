"""Results as a table, narrow enough for a pipe; and two of them side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_ext.evaluate.compare import compare, other_options
from megatron_ext.evaluate.results import Metric, Results
from megatron_ext.plan.render import terminal
from megatron_ext.plan.render_table import frame

_RATIOS = ("avg", "pass", "well_formed", "acc", "exact", "maj", "f1", "prompt_level", "inst_level")
"""Beginnings of the names of metrics that are ratios in [0, 1], shown in percent."""


def print_results(results: Results, folder: Path, *, as_json: bool = False) -> None:
    """Prints the metrics of every task.

    Args:
        results: Of an evaluation.
        folder: Where it lies.
        as_json: The results alone, as in the file.
    """
    if as_json:
        print(json.dumps(results.model_dump(mode="json"), indent=1, ensure_ascii=False))
        return
    console = terminal()
    console.print(f"{results.checkpoint.stage_id} step {results.checkpoint.step:,}  {results.checkpoint.model}")
    table = frame("task", "metric", "value", "95 %", "items")
    for column in table.columns[2:]:
        column.justify = "right"
    for task in results.tasks:
        for number, metric in enumerate(task.metrics):
            table.add_row("" if number else task.name, metric.name, *_cells(metric), f"{metric.n:,}")
    for aggregate in results.aggregates:
        said = f"{100 * aggregate.value:.2f} %" if aggregate.value is not None else _missing(aggregate.missing)
        table.add_row(aggregate.name, aggregate.rule, said, "", f"{len(aggregate.of):,}")
    console.print(table)
    for aggregate in results.aggregates:
        if aggregate.value is None and len(aggregate.missing) > 1:
            console.print(f"{aggregate.name}: missing {', '.join(aggregate.missing)}")
    for task in results.tasks:
        if task.contamination.status in ("overlaps", "unknown"):
            console.print(f"{task.name}: contamination {task.contamination.status}: {task.contamination.note}")
        for note in task.notes:
            console.print(f"{task.name}: {note}")
    if results.tasks:
        console.print(f"{folder}/{results.items_file}: every item; results.json: all of this", soft_wrap=True)
    else:
        console.print("no task has a result yet", soft_wrap=True)


def _missing(names: Sequence[str]) -> str:
    """Short enough for a column; several are named below the table."""
    return f"missing {names[0]}" if len(names) == 1 else f"missing {len(names):,}"


def _form(name: str) -> tuple[float, str, str]:
    """Factor, format and unit of a metric."""
    return (100.0, "{:z.2f}", " %") if name.startswith(_RATIOS) else (1.0, "{:z.4f}", "")


def _cells(metric: Metric) -> tuple[str, str]:
    scale, form, unit = _form(metric.name)
    value = form.format(scale * metric.value) + unit
    interval = metric.interval
    if interval is None:
        return value, ""
    return value, f"{form.format(scale * interval.low)} to {form.format(scale * interval.high)}"


def print_comparison(first: Results, second: Results, folder: Path, other: Path, *, as_json: bool = False) -> None:
    """Prints the differences of the metrics that two evaluations both have.

    Args:
        first: Of one evaluation.
        second: Of the other.
        folder: Of the first.
        other: Of the second.
        as_json: The differences alone.
    """
    found = compare(first, second, folder, other)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
        return
    console = terminal()
    for letter, results in (("A", first), ("B", second)):
        console.print(f"{letter}  {results.checkpoint.stage_id} step {results.checkpoint.step:,}  {results.name}")
    table = frame("task", "metric", "A", "B", "B - A", "95 %, paired")
    for column in table.columns[2:]:
        column.justify = "right"
    for one in found:
        scale, form, unit = _form(one.metric)
        values = [form.format(scale * value) + unit for value in (one.first, one.second)]
        ends = one.note
        if one.low is not None and one.high is not None:
            ends = f"{form.format(scale * one.low)} to {form.format(scale * one.high)}"
        table.add_row(one.task, one.metric, *values, form.format(scale * (one.second - one.first)), ends)
    console.print(table)
    for line in other_options(first, second):
        console.print(f"asked otherwise: {line}", soft_wrap=True)
