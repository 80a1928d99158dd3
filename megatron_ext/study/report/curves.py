"""Training curves from metrics.jsonl: few points of many lines, stages of a chain behind each other, seeds as a band.

A stage of 100,000 steps is drawn with 160 points. Each point is the mean of the lines of one 160th of the stage's
tokens; held-out values are few, and all are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from megatron_ext.recipe.study_schema import StageKind
from megatron_ext.study.report.content import Curve
from megatron_ext.study.report.labels import StageGroup

MOST_POINTS = 160
"""Of one stage."""

QUANTITIES = ("loss", "reward", "pass_rate", "lr")
"""Of every line."""

HELD_OUT = "held_out"

_NUMBERS = ("consumed_tokens", "tokens_per_s", "save_s", *QUANTITIES)

Points = dict[tuple[str, str], list[tuple[float, float]]]
"""By quantity and source (x, y), x in processed tokens of the stage."""


@dataclass
class StageMetrics:
    """What one stage's metrics.jsonl says.

    Attributes:
        points: Of each quantity.
        lines: That were read.
        seconds: Wall time of all steps, and of saving between them.
        cut: Lines that could not be read: a run that is writing, or was killed.
        last: Counters of the last line.
    """

    points: Points = field(default_factory=dict)
    lines: int = 0
    seconds: float = 0.0
    cut: int = 0
    last: dict[str, Any] = field(default_factory=dict)


def read_metrics(folder: Path, total_tokens: int) -> StageMetrics:
    """Reads the metrics of a stage's folder; nothing where it has none.

    Args:
        folder: Of the stage.
        total_tokens: Processed by the whole stage, as planned.
    """
    found = StageMetrics()
    for key, value in _before(folder):
        found.points.setdefault((HELD_OUT, key), []).append((0.0, value))
    rows = []
    for line in _lines(folder / "metrics.jsonl", found):
        rows.append([line.get(name) for name in _NUMBERS])
        found.last = line
        if line.get("validation"):
            _add_held_out(found, line)
    if not rows:
        return found
    numbers = dict(zip(_NUMBERS, np.asarray(rows, np.float64).T, strict=True))  # null becomes NaN
    tokens = numbers["consumed_tokens"]
    speed = np.where(numbers["tokens_per_s"] > 0, numbers["tokens_per_s"], np.nan)
    seconds = np.diff(tokens, prepend=0.0) / speed
    found.seconds = float(np.nansum(seconds) + np.nansum(numbers["save_s"]))
    total = max(total_tokens, int(tokens[-1]), 1)
    places = np.minimum(((tokens - 1) * MOST_POINTS / total).astype(np.int64), MOST_POINTS - 1)
    for quantity in QUANTITIES:
        if points := _means(places, numbers[quantity], total / MOST_POINTS):
            found.points[quantity, ""] = points
    return found


def _means(places: NDArray[np.int64], values: NDArray[np.float64], width: float) -> list[tuple[float, float]]:
    """The mean of the finite values of each place, at its middle."""
    is_known = np.isfinite(values)
    counts = np.bincount(places[is_known], minlength=MOST_POINTS)
    sums = np.bincount(places[is_known], values[is_known], MOST_POINTS)
    return [((place + 0.5) * width, float(sums[place] / counts[place])) for place in np.flatnonzero(counts)]


def _add_held_out(found: StageMetrics, line: Mapping[str, Any]) -> None:
    found_here = line["validation"]
    for source, value in found_here.items():
        if not _is_end(source, found_here) and value is not None:
            found.points.setdefault((HELD_OUT, source), []).append((float(line["consumed_tokens"]), value))


def _before(folder: Path) -> Iterator[tuple[str, float]]:
    """Held-out values of the weights that a stage began with, where it measured them."""
    try:
        values = orjson.loads((folder / "before.json").read_bytes())
    except (OSError, ValueError):
        return
    values = values.get("validation", values) if isinstance(values, dict) else {}
    for source, value in values.items():
        if isinstance(value, float | int) and not _is_end(source, values):
            yield source, float(value)


def _is_end(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a held-out value is an end of another's interval, and no source whose own name ends like one."""
    return any(name.endswith(end) and name.removesuffix(end) in values for end in ("_low", "_high"))


def _lines(file: Path, found: StageMetrics) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for line in lines:
            try:
                read = orjson.loads(line)
            except ValueError:
                read = None
            if isinstance(read, dict) and isinstance(read.get("consumed_tokens"), int):
                found.lines += 1
                yield read
            else:
                found.cut += 1


def curves_of(groups: Sequence[StageGroup], metrics: dict[str, StageMetrics]) -> list[Curve]:
    """The curves of all stages, each once for all its seeds.

    Args:
        groups: Stages with their replicates.
        metrics: By stage id.
    """
    found = []
    for group in groups:
        seeds = [metrics[stage.stage_id] for stage in group.stages if metrics[stage.stage_id].lines]
        keys = dict.fromkeys(key for one in seeds for key in one.points)
        for quantity, source in keys:
            lines = [one.points[quantity, source] for one in seeds if (quantity, source) in one.points]
            curve = _curve(group, quantity, source, lines)
            found.append(curve.model_copy(update={"lines": sum(one.lines for one in seeds)}))
    return found


def _curve(group: StageGroup, quantity: str, source: str, lines: Sequence[Sequence[tuple[float, float]]]) -> Curve:
    """One curve: at each place the mean of the seeds that have it, and their smallest and largest.

    Steps of RL are as long as their answers, so there the places of one step differ between seeds: points are taken
    together by their number, at the mean of their places.
    """
    stage: StageKind = group.stages[0].stage
    places: dict[float, list[tuple[float, float]]] = {}
    for line in lines:
        for number, (x, y) in enumerate(line):
            places.setdefault(number if stage == "rl" else x, []).append((x, y))
    points = [tuple(zip(*places[place], strict=True)) for place in sorted(places)]
    has_band = len(lines) > 1
    return Curve(
        stage=stage,
        quantity=quantity,
        source=source,
        label=group.label,
        node=group.stages[0].stage_id,
        arms=group.arms,
        stage_ids=tuple(one.stage_id for one in group.stages),
        tokens=tuple(group.tokens_before + sum(xs) / len(xs) for xs, _ in points),
        mean=tuple(sum(ys) / len(ys) for _, ys in points),
        low=tuple(min(ys) for _, ys in points) if has_band else (),
        high=tuple(max(ys) for _, ys in points) if has_band else (),
        lines=0,
    )
