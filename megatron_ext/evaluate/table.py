"""Results as a table, narrow enough for a pipe; and two of them side by side."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_ext.evaluate.results import Metric, Results
from megatron_ext.plan.render import terminal
from megatron_ext.plan.render_table import frame

_RATIOS = ("avg", "pass", "acc", "exact", "maj", "f1", "prompt_level", "inst_level")
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
        said = (
            "missing " + ", ".join(aggregate.missing) if aggregate.value is None else f"{100 * aggregate.value:.2f} %"
        )
        table.add_row(aggregate.name, aggregate.rule, said, "", f"{len(aggregate.of):,}")
    console.print(table)
    for task in results.tasks:
        if task.contamination.status in ("overlaps", "unknown"):
            console.print(f"{task.name}: contamination {task.contamination.status}: {task.contamination.note}")
        for note in task.notes:
            console.print(f"{task.name}: {note}")
    console.print(f"{folder}/{results.items_file}: every item; results.json: all of this", soft_wrap=True)


def _cells(metric: Metric) -> tuple[str, str]:
    scale, form, unit = (100.0, "{:.2f}", " %") if metric.name.startswith(_RATIOS) else (1.0, "{:.4f}", "")
    value = form.format(scale * metric.value) + unit
    interval = metric.interval
    if interval is None:
        return value, ""
    return value, f"{form.format(scale * interval.low)} to {form.format(scale * interval.high)}"


def print_comparison(first: Results, second: Results, folder: Path, other: Path, *, as_json: bool = False) -> None:
    """Prints the differences of the metrics that both have."""
    raise NotImplementedError
