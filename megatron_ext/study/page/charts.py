"""Charts as shapes: lines with bands, and the graph of stages. The templates write them as inline SVG.

Own shapes instead of a plotting library: a page of thirty charts stays under a megabyte, is made in milliseconds,
prints, follows dark and light through the page's colours, and has text that is selected and read aloud.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data_tools.quantities import format_count
from megatron_ext.study.graph import places_of
from megatron_ext.study.report.content import Curve, GraphNode

WIDTH, HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 34


@dataclass(frozen=True)
class Tick:
    """A mark of an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        series: Number of its colour.
        name: Of the series.
        path: In SVG's words.
        band: Around it, of the seeds; "" without.
        dots: Points to mark, where there are few.
    """

    series: int
    name: str
    path: str
    band: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class LineChart:
    """A chart of curves over tokens."""

    title: str
    note: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bottom: float = HEIGHT - _BOTTOM
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    width: int = WIDTH
    height: int = HEIGHT


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in a range: multiples of 1, 2 or 5 times a power of ten.

    >>> nice_ticks(0, 1), nice_ticks(0, 7)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 2.0, 4.0, 6.0])
    """
    if high <= low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(title: str, curves: Sequence[Curve], series: dict[str, int], *, note: str = "") -> LineChart:
    """Curves of one quantity.

    Args:
        title: Of the chart.
        curves: At least one, each with points.
        series: Number of the colour of each label.
        note: What a reader must know.
    """
    x_low, x_high = min(curve.tokens[0] for curve in curves), max(curve.tokens[-1] for curve in curves)
    x_low = 0.0 if x_low < x_high / 2 else x_low
    ys = [y for curve in curves for y in (*curve.mean, *curve.low, *curve.high)]
    y_low, y_high = min(ys), max(ys)
    if y_low == y_high:
        y_low, y_high = y_low - (abs(y_low) or 1) / 2, y_high + (abs(y_high) or 1) / 2
    room = (y_high - y_low) * 0.04
    y_low, y_high = y_low - room, y_high + room
    x_scale = (WIDTH - _LEFT - _RIGHT) / ((x_high - x_low) or 1)
    y_scale = (HEIGHT - _TOP - _BOTTOM) / (y_high - y_low)

    def place(x: float, y: float) -> tuple[float, float]:
        return round(_LEFT + (x - x_low) * x_scale, 1), round(HEIGHT - _BOTTOM - (y - y_low) * y_scale, 1)

    lines = []
    for curve in curves:
        middle = [place(x, y) for x, y in zip(curve.tokens, curve.mean, strict=True)]
        upper = [place(x, y) for x, y in zip(curve.tokens, curve.high, strict=False)]
        lower = [place(x, y) for x, y in zip(curve.tokens, curve.low, strict=False)]
        band = f"{_path(upper)}L{_path(lower[::-1])[1:]}Z" if len(upper) > 1 else ""
        dots = tuple(middle) if len(middle) <= 12 else ()
        lines.append(Line(series[curve.label], curve.label, _path(middle), band, dots))
    x_ticks = tuple(Tick(place(x, y_low)[0], _token_label(x)) for x in nice_ticks(x_low, x_high, 4))
    y_ticks = tuple(Tick(place(x_low, y)[1], f"{y:.6g}".replace("-", "−")) for y in nice_ticks(y_low, y_high))
    return LineChart(title, note, tuple(lines), x_ticks, y_ticks)


def _token_label(tokens: float) -> str:
    return format_count(round(tokens))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


@dataclass(frozen=True)
class Box:
    """A stage of the graph, at its place."""

    node: GraphNode
    x: float
    y: float
    edge: str  # from its parent; "" at the beginning
    short: str  # the label, cut to the box


@dataclass(frozen=True)
class StageGraph:
    """Boxes in columns by their depth, parents beside the middle of their children."""

    boxes: tuple[Box, ...]
    width: float
    height: float
    box_width: float = 252
    box_height: float = 46


_COLUMN, _ROW = 290, 58
MOST_LETTERS = 31
"""Of a label in its box; what is cut stands in the box's title."""


def stage_graph(nodes: Sequence[GraphNode]) -> StageGraph:
    """The graph of stages, drawn from left to right."""
    found = places_of({one.node: one.parent for one in nodes})
    places: dict[str, tuple[float, float]] = {
        node: (column * _COLUMN + 4, line * _ROW + 4) for node, (column, line) in found.items()
    }
    blank = StageGraph((), 0, 0)
    boxes = []
    for node in nodes:
        x, y = places[node.node]
        edge = ""
        if node.parent is not None:
            from_x, from_y = places[node.parent]
            from_x, from_y, to_y = from_x + blank.box_width, from_y + blank.box_height / 2, y + blank.box_height / 2
            middle = (from_x + x) / 2
            edge = f"M{from_x:g} {from_y:g}C{middle:g} {from_y:g} {middle:g} {to_y:g} {x:g} {to_y:g}"
        short = node.label if len(node.label) <= MOST_LETTERS else f"{node.label[: MOST_LETTERS - 1]}…"
        boxes.append(Box(node, x, y, edge, short))
    width = max((box.x for box in boxes), default=0) + blank.box_width + 4
    bottom = max((box.y + _ROW for box in boxes), default=4.0)
    return StageGraph(tuple(boxes), width, bottom)
