"""A lineage as a picture: sources on the left, the chain of stages in the middle, what was found on the right.

Plain SVG that stands alone and follows the reader's light or dark setting.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from data_tools.atomic_files import write_atomically
from data_tools.quantities import format_exact
from megatron_ext.study.lineage.record import Lineage, StageFacts

_ROW, _GAP, _PAD = 20, 36, 12
"""Height of a line, space between stages, and room inside boxes, in pixels."""
_SOURCES_X, _STAGES_X, _FOUND_X, _WIDTH = 10, 330, 720, 1060
_BOX_WIDTH, _SOURCE_WIDTH = 330, 270
_STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #1d2433 } .faint { fill: #5b6475 } .bold { font-weight: 600 }
rect { fill: #f4f6fb; stroke: #8a94a8 } .lost { stroke: #b3261e; stroke-dasharray: 4 3 }
path { stroke: #8a94a8; fill: none } marker path { fill: #8a94a8 } .ground { fill: #ffffff; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9f0 } .faint { fill: #a3acbd } rect { fill: #232a38 } .ground { fill: #151a24 }
}"""


def write_graph(lineage: Lineage, file: Path) -> None:
    """Writes the picture."""
    write_atomically(file, graph_svg(lineage).encode())


def graph_svg(lineage: Lineage) -> str:
    """The picture as text."""
    parts: list[str] = []
    y = _GAP
    bottom_before: int | None = None
    for stage in lineage.stages:
        height = _PAD * 2 + _ROW * max(3, len(stage.sources), 1 + sum(len(e.tasks) for e in stage.evaluations))
        if bottom_before is not None:
            gives = lineage.stages[lineage.stages.index(stage) - 1].gives
            parts.append(_arrow(_STAGES_X + _BOX_WIDTH // 2, bottom_before, _STAGES_X + _BOX_WIDTH // 2, y))
            parts.append(_text(_STAGES_X + _BOX_WIDTH // 2 + 8, (bottom_before + y) // 2 + 4, gives or "", "faint"))
        parts += _stage(stage, y, height)
        bottom_before, y = y + height, y + height + _GAP
    size = f'viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}"'
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    marker = '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    head = f"<title>{escape(lineage.checkpoint)}</title><style>{_STYLE}</style>"
    tip = f'<defs>{marker}<path d="M0 0 L8 4 L0 8 z"/></marker></defs>'
    return "\n".join([frame, head, tip, f'<rect class="ground" width="{_WIDTH}" height="{y}"/>', *parts, "</svg>\n"])


def _stage(stage: StageFacts, y: int, height: int) -> list[str]:
    lost = " lost" if stage.folder is None and stage.checkpoint is None else ""
    parts = [_box(_STAGES_X, y, _BOX_WIDTH, height, lost)]
    tokens = stage.checkpoint.processed_tokens if stage.checkpoint else stage.planned_tokens
    said = f"{format_exact(tokens)} tokens" + ("" if stage.checkpoint else " planned; not in this run root")
    for line, (text, kind) in enumerate(((stage.stage_id, "bold"), (stage.recipe, ""), (said, "faint"))):
        parts.append(_text(_STAGES_X + _PAD, y + _PAD + _ROW * line + 14, text, kind))
    for line, source in enumerate(stage.sources):
        middle = y + _PAD + _ROW * line + 10
        parts.append(_box(_SOURCES_X, middle - 9, _SOURCE_WIDTH, 18, "" if source.state == "as read" else " lost"))
        read = "" if source.read_tokens is None else f"  {format_exact(source.read_tokens)}"
        state = "" if source.state == "as read" else f"  {source.state}"
        parts.append(_text(_SOURCES_X + 6, middle + 4, f"{source.source}{read}{state}"))
        parts.append(_arrow(_SOURCES_X + _SOURCE_WIDTH, middle, _STAGES_X, middle))
    line = 0
    for evaluation in stage.evaluations:
        for task in evaluation.tasks:
            text = f"{task.name}: {task.metric} {task.value:.4g}"
            parts.append(_text(_FOUND_X, y + _PAD + _ROW * line + 14, text))
            line += 1
    return parts


def _box(x: int, y: int, width: int, height: int, kind: str) -> str:
    return f'<rect class="box{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>'


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def _arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<path d="M{x1} {y1} L{x2} {y2}" marker-end="url(#tip)"/>'
