"""One metric over all rows of a table: what each replicate found, and draws of what else could have been found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megatron_ext.evaluate.results import METRIC_UNITS, Aggregate, TaskResult
from megatron_ext.recipe.study_schema import StageKind
from megatron_ext.study.report.bootstrap import (
    ITEM_RESAMPLES,
    Array,
    draw_both,
    draw_items,
    draw_known,
    ends,
    generator_of,
    spread_of_seeds,
)
from megatron_ext.study.report.evaluated import Evaluated
from megatron_ext.study.report.families import Family, families_of, runs_of
from megatron_ext.study.report.numbers import Drawn, Estimate, MetricInfo
from megatron_ext.study.report.seed_tree import SeedTree, contrast_draws
from megatron_ext.training.intervals import NORMAL_95


@dataclass(frozen=True)
class Measured:
    """A metric.

    Attributes:
        info: What it is.
        values: Of each row the value of each replicate, by its number; {} where nothing was found.
        item_draws: [resamples, rows] of other items; NaN where nothing was found.
        draws: [draws, rows] of other items and seeds.
        questions: Of each row what was asked and how it was counted: rows where this differs are not compared.
        knows_items: Of each row whether the draws are of other items too.
        families: Of each row its replicates, apart where they are independent of each other.
    """

    info: MetricInfo
    values: tuple[dict[int, float], ...]
    item_draws: Array
    draws: Array
    questions: tuple[frozenset[tuple[str, str]], ...]
    knows_items: tuple[bool, ...]
    families: tuple[tuple[Family, ...], ...]

    def drawn(self, rows: Sequence[int]) -> Drawn:
        """What the intervals of some rows, or of their difference, were drawn from."""
        items, seeds = all(self.knows_items[row] for row in rows), self.info.seed_degrees > 0
        return "items and seeds" if items and seeds else "items" if items else "seeds" if seeds else "nothing"

    def value(self, row: int) -> float | None:
        """The mean over replicates of a row."""
        found = list(self.values[row].values())
        return float(np.mean(found)) if found else None

    def estimate(self, row: int) -> Estimate | None:
        """A row's value with its interval."""
        value = self.value(row)
        if value is None:
            return None
        if self.drawn([row]) == "nothing":
            return Estimate(value=value)
        low, high = ends(self.draws[:, row], value)
        is_clipped = self.info.is_share  # a share beyond 0 or 1 is none; seeds are drawn from t, which knows no end
        return Estimate(
            value=value, low=max(low, 0.0) if is_clipped else low, high=min(high, 1.0) if is_clipped else high
        )

    def difference(self, better: Sequence[int], than: Sequence[int]) -> Estimate | None:
        """Mean of some rows - mean of others, positive where the first are better; None where one has no number."""
        values = [[self.value(row) for row in rows] for rows in (better, than)]
        if any(value is None for rows in values for value in rows) or not self.are_comparable([*better, *than]):
            return None
        sign = 1.0 if self.info.is_higher_better else -1.0
        means = [sum(value for value in rows if value is not None) / len(rows) for rows in values]
        value = sign * (means[0] - means[1])
        if self.drawn([*better, *than]) == "nothing":
            return Estimate(value=value)
        intervals = [
            ends(sign * (drawn[:, list(better)].mean(1) - drawn[:, list(than)].mean(1)) + moved, value)
            for drawn, moved in self._contrasts(better, than)
        ]
        return Estimate(value=value, low=min(low for low, _ in intervals), high=max(high for _, high in intervals))

    def _contrasts(self, better: Sequence[int], than: Sequence[int]) -> list[tuple[Array, Array | float]]:
        """Draws whose differences give intervals, the widest of which counts, and what seeds add to each."""
        info, runs = self.info, runs_of(self.values, self.families)
        draw = generator_of(info.stage, info.suite, info.name, info.role, "contrast", f"{better} {than}")
        by_replicate = contrast_draws([runs[row] for row in better], [runs[row] for row in than], draw)
        if by_replicate is None:
            return [(self.draws, 0.0)]
        return [(self.draws, 0.0), (draw_both(self.item_draws, 0.0), by_replicate)]

    def are_comparable(self, rows: Sequence[int]) -> bool:
        """Whether rows were asked the same and counted in the same way."""
        return len({self.questions[row] for row in rows if self.values[row]}) <= 1

    def best_ratios(self) -> dict[int, float]:
        """Of each row with a number the share of draws in which it is the best; {} where nothing can be drawn."""
        rows = [row for row, values in enumerate(self.values) if values]
        if not rows or self.drawn(rows) == "nothing":
            return {}
        signed = self.draws[:, rows] * (1.0 if self.info.is_higher_better else -1.0)
        is_best = signed == signed.max(1, keepdims=True)  # of equal draws each has its part
        wins = (is_best / is_best.sum(1, keepdims=True)).mean(0)
        return {row: float(wins[at]) for at, row in enumerate(rows)}

    def best_rows(self) -> list[int]:
        """The rows with the best value: several where they are equal."""
        values = {row: value for row in range(len(self.values)) if (value := self.value(row)) is not None}
        if not values:
            return []
        best = (max if self.info.is_higher_better else min)(values.values())
        return [row for row, value in values.items() if value == best]


def measure_task(stage: StageKind, suite: str, name: str, rows: Sequence[Sequence[Evaluated]]) -> Measured:
    """A task's headline metric.

    Args:
        stage: Kind of stage.
        suite: Name of the suite.
        name: Of the task; one row at least has it.
        rows: Of each row its evaluated replicates.
    """
    tasks = [[(one, task) for one in row if (task := one.task(name)) is not None] for row in rows]
    first = next(task for row in tasks for _, task in row)
    metric = first.metric()
    values = tuple({one.replicate: task.metric().value for one, task in row} for row in tasks)
    is_share = metric.is_higher_better and all(0 <= value <= 1 for row in values for value in row.values())
    families = tuple(families_of([one for one, _ in row]) for row in tasks)
    tree = SeedTree(runs_of(values, families))
    info = MetricInfo(
        stage=stage,
        suite=suite,
        name=name,
        role="task",
        domain=first.domain,
        metric=metric.name,
        unit="share" if is_share else METRIC_UNITS.get(metric.name, ""),
        is_share=is_share,
        is_higher_better=metric.is_higher_better,
        items=max(task.items for row in tasks for _, task in row),
        **_spreads(values, families, tree),
        notes=tuple(dict.fromkeys(note for row in tasks for _, task in row for note in task.notes)),
    )
    item_draws, knows_items = _draws_of_items(tasks, name, generator_of(stage, suite, name, "items"))
    questions = tuple(frozenset((task.data_id, task.method) for _, task in row) for row in tasks)
    draws = _with_seeds(info, tree, item_draws)
    return Measured(info, values, item_draws, draws, questions, knows_items, families)


def _draws_of_items(
    tasks: Sequence[Sequence[tuple[Evaluated, TaskResult]]], name: str, draw: np.random.Generator
) -> tuple[Array, tuple[bool, ...]]:
    """[resamples, rows]; by items where all replicates of a row kept them, else from the interval in their results."""
    drawn = np.full((ITEM_RESAMPLES, len(tasks)), np.nan)
    by_items = [row for row, found in enumerate(tasks) if found and all(name in one.scores for one, _ in found)]
    if by_items:
        drawn[:, by_items] = draw_items([[one.scores[name] for one, _ in tasks[row]] for row in by_items], draw)
    knows_items = [row in by_items for row in range(len(tasks))]
    for row, found in enumerate(tasks):
        if not found or row in by_items:
            continue
        metrics = [task.metric() for _, task in found]
        intervals = [metric.interval for metric in metrics if metric.interval is not None]
        knows_items[row] = len(intervals) == len(metrics)
        widths = [interval.high - interval.low for interval in intervals] if knows_items[row] else [0.0]
        error = float(np.sqrt(np.square(widths).sum())) / (2 * NORMAL_95 * len(metrics))
        drawn[:, row] = draw_known([(float(np.mean([metric.value for metric in metrics])), error)], draw)[:, 0]
    return drawn, tuple(knows_items)


def _with_seeds(info: MetricInfo, tree: SeedTree, item_draws: Array) -> Array:
    draw = generator_of(info.stage, info.suite, info.name, info.role, "seeds")
    return draw_both(item_draws, tree.draw(draw))


def _spreads(
    values: Sequence[dict[int, float]], families: Sequence[tuple[Family, ...]], tree: SeedTree
) -> dict[str, Any]:
    """What a table says of seeds: of one replicate around its arm's mean, and of what arms do not share."""
    whole = spread_of_seeds([[run.value for run in row] for row in runs_of(values, families)])
    first, paired = next(iter(tree.spreads), None), tree.paired
    return {
        "seed_deviation": whole.deviation if whole else None,
        "seed_degrees": first.degrees if first else 0,
        "paired_deviation": paired.deviation if paired else None,
        "paired_degrees": paired.degrees if paired else 0,
    }


def measure_mean(info: MetricInfo, parts: Sequence[Measured]) -> Measured:
    """The unweighted mean of metrics; a replicate that misses one of them has no value.

    Args:
        info: Of the mean; what follows from its parts is filled in.
        parts: At least one.
    """
    rows = range(len(parts[0].values))
    values = []
    for row in rows:
        whole = [number for number in parts[0].values[row] if all(number in part.values[row] for part in parts)]
        values.append({number: float(np.mean([part.values[row][number] for part in parts])) for number in whole})
    families = parts[0].families
    tree = SeedTree(runs_of(values, families))
    info = info.model_copy(
        update={
            "unit": parts[0].info.unit if len({part.info.unit for part in parts}) == 1 else "",
            "is_share": all(part.info.is_share for part in parts),
            "is_higher_better": parts[0].info.is_higher_better,
            "items": sum(part.info.items or 0 for part in parts),
        }
        | _spreads(values, families, tree)
    )
    item_draws = np.mean([part.item_draws for part in parts], 0)
    questions = tuple(frozenset().union(*(part.questions[row] for part in parts)) for row in rows)
    knows_items = tuple(all(part.knows_items[row] for part in parts) for row in rows)
    draws = _with_seeds(info, tree, item_draws)
    return Measured(info, tuple(values), item_draws, draws, questions, knows_items, families)


def measure_suite(
    stage: StageKind, suite: str, rows: Sequence[Sequence[Evaluated]], main: str | None
) -> list[Measured]:
    """All of a suite's numbers that some row has: means as the suite makes them, tasks, and means of domains.

    Args:
        stage: Kind of stage.
        suite: Its name.
        rows: Of each row its evaluated replicates.
        main: Metric that the headline is about; None: the suite's last mean, or its first task.
    """
    results = [one.results for row in rows for one in row]
    names = dict.fromkeys(task.name for result in results for task in result.tasks)
    tasks = {name: measure_task(stage, suite, name, rows) for name in names}
    known = dict(tasks)
    means: dict[str, Measured] = {}
    defined: dict[str, Aggregate] = {one.name: one for result in results for one in result.aggregates}
    for one in defined.values():
        parts = [known[name] for name in one.of if name in known]
        if len(parts) == len(one.of) and len({part.info.is_higher_better for part in parts}) == 1:
            info = _mean_info(stage, suite, one.name, "aggregate", one.of)
            known[one.name] = means[one.name] = measure_mean(info, parts)
    domains = dict.fromkeys(task.info.domain for task in tasks.values() if task.info.domain and task.info.is_share)
    by_domain = {
        domain: [task for task in tasks.values() if task.info.domain == domain and task.info.is_share]
        for domain in domains
    }
    bars = [
        measure_mean(_mean_info(stage, suite, domain, "domain", tuple(part.info.name for part in parts)), parts)
        for domain, parts in by_domain.items()
    ]
    chosen = main if main in known else next(reversed(means), None) or next(iter(tasks), None)
    return [
        replace(
            one, info=one.info.model_copy(update={"is_main": one.info.name == chosen and one.info.role != "domain"})
        )
        for one in (*reversed(means.values()), *tasks.values(), *bars)
    ]


def _mean_info(stage: StageKind, suite: str, name: str, role: str, of: tuple[str, ...]) -> MetricInfo:
    return MetricInfo.model_validate(
        {
            "stage": stage,
            "suite": suite,
            "name": f"domain:{name}" if role == "domain" else name,  # a task may have the domain's name
            "role": role,
            "domain": name if role == "domain" else "",
            "of": of,
            "is_share": True,
            "is_higher_better": True,
        }
    )
