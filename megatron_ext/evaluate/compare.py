"""What two evaluations differ in: paired by item, so that hard items do not hide a small difference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import DataError
from megatron_ext.evaluate.kept_items import Line, read_items
from megatron_ext.evaluate.results import Results, TaskResult
from megatron_ext.training.intervals import bootstrap_interval

Scores = dict[str, tuple[float, float]]
"""Of each item the mean score of its answers, or the sum over its windows, and the weight that goes with it."""


_CHANGE_NOTHING = {"slots", "batch_tokens", "scoring_timeout_s", "seed", "contaminated", "overlap", "include_path"}
_CHANGE_NOTHING |= {"contamination_share", "contamination_items", "contamination_ngram"}


@dataclass(frozen=True)
class Difference:
    """Of one metric.

    Attributes:
        task: Name of the task.
        metric: Name of the metric.
        first: Its value in the first evaluation.
        second: In the second.
        low: Lower end of the 95 % interval of second - first, from the differences of items; None where the items are
            not the same, and for other metrics than the headline.
        high: Upper end.
        note: What is not the same: items or rule.
    """

    task: str
    metric: str
    first: float
    second: float
    low: float | None = None
    high: float | None = None
    note: str = ""


def compare(first: Results, second: Results, folder: Path, other: Path) -> list[Difference]:
    """The differences of all metrics that both have.

    Args:
        first: Of one evaluation.
        second: Of the other.
        folder: Of the first, with its items.
        other: Of the second.

    Raises:
        DataError: They have no task in common.
    """
    theirs = {task.name: task for task in second.tasks}
    both = [(task, theirs[task.name]) for task in first.tasks if task.name in theirs]
    if not both:
        raise DataError(f"{folder} and {other}: have no task in common; evaluate the same tasks.")
    scores = [scores_by_task(read_items(where)) for where in (folder, other)]
    found = []
    for task, same in both:
        names = {metric.name for metric in same.metrics}
        note = "other items" if task.data_id != same.data_id else "other rule" if task.method != same.method else ""
        ends = _paired(task, same, *(of_tasks.get(task.name, {}) for of_tasks in scores), seed=first.seed)
        for metric in task.metrics:
            if metric.name in names:
                interval = ends if metric.name == task.headline == same.headline else (None, None)
                value = same.metric(metric.name).value
                alike = note or ("" if ends != (None, None) or metric.name != task.headline else "all items alike")
                found.append(Difference(task.name, metric.name, metric.value, value, *interval, alike))
    return found


def scores_by_task(lines: Iterable[Line]) -> dict[str, Scores]:
    """The items of each task; those without a score, or with several headline metrics, are left out."""
    found: dict[str, dict[str, list[Line]]] = {}
    for line in lines:
        if line.get("score") is not None:
            found.setdefault(line["task"], {}).setdefault(line["item"], []).append(line)
    return {task: {item: _score(lines) for item, lines in items.items()} for task, items in found.items()}


def _score(lines: list[Line]) -> tuple[float, float]:
    total = sum(line["score"] for line in lines)
    if "weight" in lines[0]:
        return total, sum(line["weight"] for line in lines)
    return total / len(lines), 1.0


def _paired(
    task: TaskResult, same: TaskResult, first: Scores, second: Scores, *, seed: int
) -> tuple[float, float] | tuple[None, None]:
    weights, theirs = ({item: weight for item, (_, weight) in scores.items()} for scores in (first, second))
    if (task.data_id, task.method) != (same.data_id, same.method) or not weights or weights != theirs:
        return None, None
    items = sorted(weights)
    differences = [second[item][0] - first[item][0] for item in items]
    if len({difference / weights[item] for item, difference in zip(items, differences, strict=True)}) < 2:
        return None, None  # all differ alike: resampling them would say that nothing else can be
    return bootstrap_interval(differences, weights=[weights[item] for item in items], seed=seed)


def other_options(first: Results, second: Results) -> list[str]:
    """What two evaluations were asked otherwise, beside what changes no number: key, and both values."""
    keys = sorted((first.options.keys() | second.options.keys()) - _CHANGE_NOTHING)
    return [
        f"{key}: {first.options.get(key)} and {second.options.get(key)}"
        for key in keys
        if first.options.get(key) != second.options.get(key)
    ]
