"""A comparison in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from data_tools.quantities import format_exact
from megatron_ext.plan.render import terminal
from megatron_ext.plan.render_table import frame
from megatron_ext.study.comparison.content import Comparison, CurvePair, Line, MetricDifference, SideFacts

_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 24


def print_comparison(comparison: Comparison) -> None:
    """Prints all of it; a part of which there is nothing is left out."""
    console = terminal()
    for letter, side in (("A", comparison.first), ("B", comparison.second)):
        console.print(f"{letter}  {side.label}: {_chain(side)}", soft_wrap=True)
    print()
    _print(console, "stages", ("place", "A", "", "B", ""), _stage_rows(comparison))
    rows = [(one.place, one.key, one.part, one.first, one.second, one.note) for one in comparison.keys]
    _print(console, "what they are", ("place", "key", "part of", "A", "B", ""), rows)
    if not rows:
        console.print("no key differs", "", sep="\n")
    numbers = ("A", "B", "B - A", "passes A", "passes B")
    _print(console, "what they read", ("place", "source", "domain", *numbers), _ledger_rows(comparison), right=3)
    columns = ("place", "source", "A", "B", "B - A", "A over tokens", "B over tokens")
    _print(console, "held-out", columns, [_curve_row(pair) for pair in comparison.curves])
    found = ("place", "evaluation", "task", "metric", "A", "B", "B - A", "95 %", "")
    _print(console, "what was found", found, [_metric_row(one) for one in comparison.metrics])
    if any(not one.is_higher_better for one in comparison.metrics):
        console.print(
            "B - A below 0 is the better B where lower is better; study report turns it round", soft_wrap=True
        )
    for note in comparison.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _chain(side: SideFacts) -> str:
    more = f" and {len(side.chains) - 1} more of other seeds" if len(side.chains) > 1 else ""
    return " → ".join(side.chains[0]) + more


def _print(console: Any, title: str, columns: Sequence[str], rows: Sequence[Iterable[str]], *, right: int = 99) -> None:
    """A table whose columns from `right` on hold numbers; nothing without rows."""
    if not rows:
        return
    table = frame(*columns, title=title)
    for column in table.columns[right:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table, "", sep="\n")


def _stage_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for one in comparison.stages:
        second = "the same" if one.is_shared else one.second or ""
        rows.append((one.place, one.first or "", one.first_state, second, one.second_state))
    return rows


def _ledger_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    return [
        (
            one.place,
            one.source,
            one.domain,
            format_exact(one.first_tokens),
            format_exact(one.second_tokens),
            f"{one.second_tokens - one.first_tokens:+,}",
            f"{one.first_epochs:.3g}",
            f"{one.second_epochs:.3g}",
        )
        for one in comparison.ledger
    ]


def _curve_row(pair: CurvePair) -> tuple[str, ...]:
    first, second = pair.first, pair.second
    low, high = _range(first, second)
    difference = f"{second.values[-1] - first.values[-1]:+.4f}" if first and second else ""
    values = [_from_to(line) if line else "" for line in (first, second)]
    sparks = [spark(line, low, high) if line else "" for line in (first, second)]
    return (pair.place, pair.source, *values, difference, *sparks)


def _from_to(line: Line) -> str:
    return f"{line.values[0]:.4f} → {line.values[-1]:.4f}"


def _range(*lines: Line | None) -> tuple[float, float]:
    values = [value for line in lines if line is not None for value in line.values]
    return min(values), max(values)


def spark(line: Line, low: float, high: float) -> str:
    """A curve as a row of bars, of at most 24 points, the last one always among them.

    Args:
        line: The curve.
        low: Value of the lowest bar.
        high: Of the highest.

    >>> spark(Line(tokens=(0.0, 1.0, 2.0), values=(2.0, 1.0, 0.0)), 0.0, 2.0)
    '█▅▁'
    """
    count = len(line.values)
    shown = min(count, _SPARK_WIDTH)
    at = [count - 1 - (shown - 1 - number) * (count - 1) // max(1, shown - 1) for number in range(shown)]
    width = (high - low) or 1.0
    return "".join(_BARS[round((line.values[place] - low) / width * (len(_BARS) - 1))] for place in at)


def _metric_row(one: MetricDifference) -> tuple[str, ...]:
    scale, form, unit = (100.0, "{:z.2f}", " %") if one.is_share else (1.0, "{:z.4f}", "")

    def said(value: float | None) -> str:
        return "" if value is None else form.format(scale * value) + unit

    ends = ""
    if one.low is not None and one.high is not None:
        ends = f"{form.format(scale * one.low)} to {form.format(scale * one.high)}"
    difference = "" if one.difference is None else form.format(scale * one.difference)
    metric = (one.metric or "mean") + ("" if one.is_higher_better else ", lower is better")
    return (one.place, one.evaluation, one.name, metric, said(one.first), said(one.second), difference, ends, one.note)
