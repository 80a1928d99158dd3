"""The held-out curves of both as SVG that stands alone: a chart for each stage and source, A and B in it."""

from __future__ import annotations

from html import escape
from pathlib import Path

from data_tools.atomic_files import write_atomically
from megatron_ext.study.comparison.content import Comparison, CurvePair, Line
from megatron_ext.study.page.charts import HEIGHT, WIDTH, LineChart, line_chart
from megatron_ext.study.report.content import Curve

_COLUMNS, _HEAD = 2, 46
_STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #1d2433 } .tick { font-size: 10px; fill: #5b6475 }
.axis { stroke: #8a94a8; fill: none } .line { fill: none; stroke-width: 1.8 } .ground { fill: #ffffff }
.s0 { stroke: #2463c9 } .s1 { stroke: #c2571a; stroke-dasharray: 6 3 } .band { opacity: 0.15; stroke: none }
.b0 { fill: #2463c9 } .b1 { fill: #c2571a }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9f0 } .tick { fill: #a3acbd } .ground { fill: #151a24 }
  .s0 { stroke: #7aa7f0 } .s1 { stroke: #f0a56b } .b0 { fill: #7aa7f0 } .b1 { fill: #f0a56b }
}"""


def write_picture(comparison: Comparison, file: Path) -> None:
    """Writes the picture."""
    write_atomically(file, picture_svg(comparison).encode())


def picture_svg(comparison: Comparison) -> str:
    """The picture as text."""
    charts = [_chart(pair) for pair in comparison.curves]
    rows = -(-len(charts) // _COLUMNS)
    width, height = _COLUMNS * WIDTH, _HEAD + rows * (HEIGHT + 24)
    parts = [f'<rect class="ground" width="{width}" height="{height}"/>']
    for number, (letter, side) in enumerate((("A", comparison.first), ("B", comparison.second))):
        y = 16 + 18 * number
        parts.append(f'<path class="line s{number}" d="M10 {y - 4}h28"/>')
        parts.append(f'<text x="46" y="{y}">{letter}  {escape(side.label)}</text>')
    for number, chart in enumerate(charts):
        x, y = number % _COLUMNS * WIDTH, _HEAD + number // _COLUMNS * (HEIGHT + 24)
        parts.append(f'<g transform="translate({x} {y + 18})">{_shapes(chart)}</g>')
    title = f"<title>{escape(comparison.first.label)} and {escape(comparison.second.label)}</title>"
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{title}<style>{_STYLE}</style>'
    return "\n".join([head, *parts, "</svg>\n"])


def _chart(pair: CurvePair) -> LineChart:
    sides = [(label, line) for label, line in (("A", pair.first), ("B", pair.second)) if line is not None]
    curves = [_curve(pair, label, line) for label, line in sides]
    return line_chart(f"{pair.place}: held-out {pair.source}", curves, {"A": 0, "B": 1})


def _curve(pair: CurvePair, label: str, line: Line) -> Curve:
    return Curve.model_validate(
        {
            "stage": pair.place.split()[0],
            "quantity": "held_out",
            "source": pair.source,
            "label": label,
            "node": "",
            "arms": (),
            "stage_ids": (),
            "tokens": line.tokens,
            "mean": line.values,
            "low": line.low,
            "high": line.high,
            "lines": 0,
        }
    )


def _shapes(chart: LineChart) -> str:
    parts = [f'<text x="{chart.left}" y="-4">{escape(chart.title)}</text>']
    parts.append(f'<path class="axis" d="M{chart.left} {chart.top}V{chart.bottom}H{chart.right}"/>')
    for tick in chart.x_ticks:
        place = f'x="{tick.at}" y="{chart.bottom + 15}" text-anchor="middle"'
        parts.append(f'<text class="tick" {place}>{tick.label}</text>')
    for tick in chart.y_ticks:
        place = f'x="{chart.left - 5}" y="{tick.at + 3}" text-anchor="end"'
        parts.append(f'<text class="tick" {place}>{tick.label}</text>')
    for line in chart.lines:
        if line.band:
            parts.append(f'<path class="band b{line.series}" d="{line.band}"/>')
        parts.append(f'<path class="line s{line.series}" d="{line.path}"/>')
    return "".join(parts)
