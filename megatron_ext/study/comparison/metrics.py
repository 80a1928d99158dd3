"""What evaluations found of both: differences paired by item, with intervals over items and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.evaluate.results import RESULTS, Results, read_results
from megatron_ext.study.comparison.content import MetricDifference
from megatron_ext.study.comparison.sides import StageAt
from megatron_ext.study.report.evaluated import Evaluated, read_evaluation
from megatron_ext.study.report.measured import Measured, measure_suite
from megatron_ext.training.file_list import weights_fingerprint

_DRAWN = {
    "items and seeds": "spread of seeds from these two alone; study report takes that of all arms",
    "items": "over items alone: one seed each",
    "seeds": "over seeds alone, their spread from these two: its items were not kept",
    "nothing": "no interval: its items were not kept",
}
"""What a reader of an interval must know, by what it was drawn from."""


@dataclass(frozen=True)
class Found:
    """One evaluation of one replicate's checkpoint."""

    folder: Path
    replicate: int
    results: Results

    @property
    def tasks(self) -> frozenset[str]:
        """Names of its tasks."""
        return frozenset(task.name for task in self.results.tasks)

    @property
    def label(self) -> str:
        """Its suite, or its tasks."""
        return self.results.suite or ", ".join(sorted(self.tasks))


def metric_differences(
    place: str, first: Sequence[StageAt], second: Sequence[StageAt], notes: list[str]
) -> list[MetricDifference]:
    """The headline metrics of the tasks that both were asked, and the means that suites make of them.

    Args:
        place: Where the stages stand.
        first: Of A, of each replicate.
        second: Of B.
        notes: Takes a sentence for evaluations that only one of the two has.
    """
    sides = [_found(stages) for stages in (first, second)]
    differences: list[MetricDifference] = []
    matched: list[Found] = []
    for label in dict.fromkeys(one.label for one in sides[0]):
        one = [found for found in sides[0] if found.label == label]
        other = [found for found in sides[1] if _are_alike(one[0], found)]
        rows = [list(filter(None, (read_evaluation(f.folder, f.replicate) for f in row))) for row in (one, other)]
        if all(rows):
            matched += [*one, *other]
            differences += _differences(place, label, rows)
    for letter, side in zip("AB", sides, strict=True):
        alone = dict.fromkeys(found.label for found in side if found not in matched)
        notes += [f"{place}: evaluation {label}: only {letter} has it" for label in alone]
    return differences


def _are_alike(first: Found, second: Found) -> bool:
    """Whether two evaluations are of one suite, or of no suite, and have a task in common."""
    return first.results.suite == second.results.suite and bool(first.tasks & second.tasks)


def _found(stages: Sequence[StageAt]) -> list[Found]:
    """The evaluations of the checkpoints that count; of several that ask the same, the newest."""
    newest: dict[tuple[int, str], Found] = {}
    for replicate, stage in enumerate(stages):
        if stage.checkpoint is None:
            continue
        weights = weights_fingerprint(stage.checkpoint)
        for file in sorted(stage.folder.glob(f"evaluations/*/{RESULTS}")):
            found = Found(file.parent, replicate, read_results(file))
            before = newest.get((replicate, found.label))
            is_newer = before is None or before.results.created <= found.results.created
            if found.results.checkpoint.fingerprint == weights and is_newer:
                newest[replicate, found.label] = found
    return list(newest.values())


def _differences(place: str, label: str, rows: Sequence[Sequence[Evaluated]]) -> list[MetricDifference]:
    kind = place.split()[0]
    measured = measure_suite(kind, label, rows, None)  # type: ignore[arg-type]
    return [_difference(place, label, one) for one in measured if one.info.role != "domain"]


def _difference(place: str, label: str, measured: Measured) -> MetricDifference:
    """B - A, as the metric is: of a loss a negative one is the better B."""
    info = measured.info
    first, second = measured.value(0), measured.value(1)
    better = measured.difference([1], [0])
    sign = 1.0 if info.is_higher_better else -1.0
    ends = sorted(sign * end for end in (better.low, better.high) if end is not None) if better is not None else []
    return MetricDifference(
        place=place,
        evaluation=label,
        name=info.name,
        role=info.role,
        metric=info.metric,
        first=first,
        second=second,
        difference=sign * better.value if better is not None else None,
        low=ends[0] if ends else None,
        high=ends[1] if ends else None,
        is_higher_better=info.is_higher_better,
        is_share=info.is_share,
        items=info.items,
        first_replicates=len(measured.values[0]),
        second_replicates=len(measured.values[1]),
        note=_note(measured, first, second),
    )


def _note(measured: Measured, first: float | None, second: float | None) -> str:
    if first is None or second is None:
        return "only A has it" if second is None else "only B has it"
    if not measured.are_comparable([0, 1]):
        return "other items or another rule: not compared"
    return _DRAWN[measured.drawn([0, 1])]
