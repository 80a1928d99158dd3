"""The graph of a study's stages as a picture: Graphviz's language, or SVG without any program.

A stage has at most one stage before it, so the graph is a forest: SVG draws it from left to right, a leaf to a line.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from data_tools.errors import UsageError
from data_tools.quantities import format_count
from megatron_ext.study.study_plan import StageNode, StudyPlan

_COLOURS = {"pretrain": "#4e79a7", "sft": "#59a14f", "rl": "#b07aa1"}
_WIDTH, _HEIGHT, _GAP, _LINE = 190, 40, 60, 56
_MARGIN = 20


def write_graph(plan: StudyPlan, file: Path) -> None:
    """Writes the picture; what it is shows in the name of the file.

    Raises:
        UsageError: Neither .svg nor .dot.
    """
    writers = {".svg": svg, ".dot": dot}
    if file.suffix not in writers:
        raise UsageError(f"--graph {file}: name a file that ends in {' or '.join(sorted(writers))}.")
    file.write_text(writers[file.suffix](plan), encoding="utf-8")


def stage_name(stage: StageNode) -> str:
    """A stage as people name it: its recipe, and its replicate where it is not the first."""
    return Path(stage.recipe).stem + (f" (seed {stage.seed})" if stage.replicate else "")


def ending_arms(plan: StudyPlan, stage: StageNode) -> list[str]:
    """The arms that end with a stage, in some replicate."""
    return [arm.id for arm in plan.arms if any(chain[-1] == stage.stage_id for chain in arm.chains)]


def dot(plan: StudyPlan) -> str:
    """The graph in Graphviz's language: stages, arrows to what begins from them, and the arms that end there."""
    lines = [
        f'digraph "{plan.name}" {{',
        "  rankdir=LR;",
        '  node [shape=box, style="rounded,filled", fillcolor=white];',
    ]
    for stage in plan.stages:
        label = f"{stage_name(stage)}\\n{stage.stage} {format_count(stage.tokens)} tokens"
        arms = "".join(f"\\n{arm}" for arm in ending_arms(plan, stage))
        lines.append(f'  "{stage.stage_id}" [label="{label}{arms}", color="{_COLOURS[stage.stage]}"];')
        if stage.parent is not None and any(one.stage_id == stage.parent for one in plan.stages):
            lines.append(f'  "{stage.parent}" -> "{stage.stage_id}";')
    return "\n".join([*lines, "}", ""])


def svg(plan: StudyPlan) -> str:
    """The graph as a picture of its own."""
    places = places_of({stage.stage_id: stage.parent for stage in plan.stages})
    columns = 1 + max(column for column, _ in places.values())
    rows = 1 + max(row for _, row in places.values())
    width, height = 2 * _MARGIN + columns * (_WIDTH + _GAP) + _WIDTH, round(2 * _MARGIN + rows * _LINE)
    body = [part for stage in plan.stages for part in _drawn(plan, stage, places)]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
    )
    background = f'<rect width="{width}" height="{height}" fill="white"/>'
    title = f"<title>{escape(plan.name)}: {plan.totals.arms} arms, {plan.totals.unique_stages} stages</title>"
    return "\n".join([head, title, background, *body, "</svg>", ""])


def places_of(parents: Mapping[str, str | None]) -> dict[str, tuple[int, float]]:
    """Column and line of each node of a forest: a leaf takes the next line, any other the middle of those behind it.

    Args:
        parents: Of each node; one that is no node itself counts as none.

    >>> places_of({"base": None, "ldq": "base", "shq": "base"})
    {'ldq': (1, 0.0), 'shq': (1, 1.0), 'base': (0, 0.5)}
    """
    children: dict[str | None, list[str]] = {}
    for node, parent in parents.items():
        children.setdefault(parent if parent in parents else None, []).append(node)
    places: dict[str, tuple[int, float]] = {}
    leaves = itertools.count()

    def put(node: str, column: int) -> float:
        below = [put(child, column + 1) for child in children.get(node, ())]
        line = (below[0] + below[-1]) / 2 if below else float(next(leaves))
        places[node] = (column, line)
        return line

    for root in children.get(None, ()):
        put(root, 0)
    return places


def _drawn(plan: StudyPlan, stage: StageNode, places: dict[str, tuple[int, float]]) -> Iterator[str]:
    """A box, the line from the stage before it, and the arms that end there."""
    left, top = _corner(places[stage.stage_id])
    middle = top + _HEIGHT / 2
    if stage.parent in places:
        before_left, before_top = _corner(places[stage.parent])
        start, end = before_left + _WIDTH, before_top + _HEIGHT / 2
        bend = (start + left) / 2
        yield f'<path d="M{start} {end} C{bend} {end} {bend} {middle} {left} {middle}" fill="none" stroke="#999"/>'
    colour = _COLOURS[stage.stage]
    box = f'x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"'
    yield f'<rect {box} fill="{colour}" fill-opacity="0.15" stroke="{colour}"/>'
    yield f'<text x="{left + 8}" y="{top + 17}" font-weight="bold">{escape(stage_name(stage))}</text>'
    size = f"{stage.stage}, {format_count(stage.tokens)} tokens"
    yield f'<text x="{left + 8}" y="{top + 32}" fill="#444">{size}</text>'
    if arms := ending_arms(plan, stage):
        is_leaf = not plan.children(stage.stage_id)
        place = f'x="{left + _WIDTH + 8}" y="{middle + 4}"' if is_leaf else f'x="{left}" y="{top + _HEIGHT + 12}"'
        yield f'<text {place} fill="#666">{escape(", ".join(arms))}</text>'


def _corner(place: tuple[int, float]) -> tuple[float, float]:
    column, line = place
    return _MARGIN + column * (_WIDTH + _GAP), _MARGIN + line * _LINE
