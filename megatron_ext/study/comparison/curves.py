"""Held-out values of both over the tokens of a stage."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ext.study.comparison.content import CurvePair, Line
from megatron_ext.study.comparison.sides import StageAt
from megatron_ext.study.report.curves import HELD_OUT, read_metrics

Points = list[tuple[float, float]]


def curve_pairs(place: str, first: Sequence[StageAt], second: Sequence[StageAt], notes: list[str]) -> list[CurvePair]:
    """One pair for each source on which one of the two was validated.

    Args:
        place: Where the stages stand.
        first: Of A, of each replicate.
        second: Of B.
        notes: Takes a sentence for lines that cannot be read.
    """
    sides = [[_points(stage, notes) for stage in stages if stage.plan is not None] for stages in (first, second)]
    sources = dict.fromkeys(source for side in sides for points in side for source in points)
    return [
        CurvePair(place=place, source=source, first=_line(sides[0], source), second=_line(sides[1], source))
        for source in sources
    ]


def _points(stage: StageAt, notes: list[str]) -> dict[str, Points]:
    assert stage.plan is not None, "a stage that has not run has no curve"
    found = read_metrics(stage.folder, stage.plan.batch.total_tokens)
    if found.cut:
        notes.append(f"{stage.stage_id}: {found.cut} lines of metrics.jsonl cannot be read: cut by a kill")
    return {source: points for (quantity, source), points in found.points.items() if quantity == HELD_OUT}


def _line(replicates: Sequence[dict[str, Points]], source: str) -> Line | None:
    places: dict[float, list[float]] = {}
    for points in replicates:
        for tokens, value in points.get(source, ()):
            places.setdefault(tokens, []).append(value)
    if not places:
        return None
    at = sorted(places)
    has_band = len(replicates) > 1
    return Line(
        tokens=tuple(at),
        values=tuple(sum(places[x]) / len(places[x]) for x in at),
        low=tuple(min(places[x]) for x in at) if has_band else (),
        high=tuple(max(places[x]) for x in at) if has_band else (),
    )
