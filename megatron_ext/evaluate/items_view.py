"""What was asked and answered, for people to read: a few items of each task, or all lines for a pipe."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from megatron_ext.evaluate.kept_items import Line, read_items
from megatron_ext.plan.render import terminal

_WIDTH = 100
_ASKED = ("task", "item", "sample", "score", "prompt", "text", "truth", "answer", "name")
"""Keys that have a place of their own in a panel; the others stand in its last line."""


def print_items(folder: Path, *, most: int, as_json: bool = False) -> None:
    """Prints the first lines of each task.

    Args:
        folder: Of a finished evaluation.
        most: Lines of each task.
        as_json: As they are kept, one JSON object a line.
    """
    console = terminal()
    for task, lines in groupby(read_items(folder), key=lambda line: line["task"]):
        every = list(lines)
        for line in every[:most]:
            if as_json:
                print(json.dumps(line, ensure_ascii=False))
            else:
                console.print(_panel(line, width=min(console.width, _WIDTH)))
        if not as_json and len(every) > most:
            console.print(f"{task}: {most:,} of {len(every):,} lines shown; --items {len(every)} shows all")


def _panel(line: Line, *, width: int) -> Panel:
    """One answer, or what else stands in a line."""
    score = line.get("score")
    parts = []
    if isinstance(prompt := line.get("prompt"), list):
        parts.append(Text("\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt) + "\n", style="dim"))
    elif prompt is not None:
        parts.append(Text(f"{prompt}\n", style="dim"))
    if "text" in line:
        parts.append(Text(f"{line['text'] or '(nothing)'}\n"))
    parts += [Text.assemble((f"{key}  ", "bold"), str(line[key])) for key in ("answer", "truth") if key in line]
    facts = {"score": score} | {key: value for key, value in line.items() if key not in _ASKED}
    parts.append(Text("  ".join(f"{key} {_short(value)}" for key, value in facts.items() if value not in (None, ""))))
    colour = "none" if "text" not in line or score is None else "green" if score > 0 else "red"
    title = f"{line['task']}  {line.get('name', line['item'])}  sample {line['sample']}"
    return Panel(Group(*parts), title=title, title_align="left", border_style=colour, width=width)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
