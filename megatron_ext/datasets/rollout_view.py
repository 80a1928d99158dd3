"""The completions of one step for people: a summary, and a panel a completion."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from data_tools.errors import UsageError
from megatron_ext.datasets.rollout_file import read_rollouts
from megatron_ext.plan.render import terminal
from megatron_ext.plan.render_table import align_numbers, frame

Record = dict[str, Any]

_WIDTH = 100
"""Columns of a completion at most; a pipe has no width of its own."""
_SUMMARY_WIDTH = 72
"""Columns that all numbers of the summary take; a narrower terminal shows `_FIRST` alone."""
_FIRST = ("samples", "reward", "right")
_SHOWN = 4
"""Completions shown where nobody says how many."""


def print_rollouts(
    stage_folder: Path,
    *,
    step: int | None = None,
    best: int | None = None,
    worst: int | None = None,
    domain: str | None = None,
    prompt: str | None = None,
    as_json: bool = False,
) -> None:
    """Prints the completions of a step.

    Args:
        stage_folder: Of an rl stage.
        step: From 1; None takes the newest.
        best: So many with the highest rewards.
        worst: So many with the lowest rewards; with neither a few in the order of sampling.
        domain: Only of this domain.
        prompt: Only of prompts whose name or id begins so, all their completions.
        as_json: One JSON object a line, as in the file.

    Raises:
        DataError: There is no such step.
        UsageError: Nothing is left to show.
    """
    step, every = read_rollouts(stage_folder, step)
    records = [
        record
        for record in every
        if domain in (None, record["domain"])
        and (prompt is None or record["name"].startswith(prompt) or record["prompt_id"].startswith(prompt))
    ]
    if not records:
        domains = ", ".join(sorted({record["domain"] for record in every}))
        raise UsageError(f"rollouts: no completion of step {step} is left; it has {len(every):,}, of domains {domains}")
    is_limited = best is not None or worst is not None or prompt is not None or as_json
    shown = _chosen(records, best, worst) if is_limited else records[:_SHOWN]
    if as_json:
        for record in shown:
            print(json.dumps(record, ensure_ascii=False))
        return
    console = terminal()
    console.print(Text.assemble((f"step {step}", "bold"), f"  {stage_folder}"))
    console.print(_summary(records, is_narrow=console.width < _SUMMARY_WIDTH))
    for record in shown:
        console.print(_panel(record, width=min(console.width, _WIDTH)))
    if not is_limited and len(records) > len(shown):
        console.print(f"{len(shown)} of {len(records):,} shown; --best N and --worst N choose, --json prints all")


def _chosen(records: Sequence[Record], best: int | None, worst: int | None) -> list[Record]:
    if best is None and worst is None:
        return list(records)
    ordered = sorted(records, key=lambda record: (-record["reward"], record["place"], record["sample"]))
    top = ordered[:best] if best else []
    bottom = ordered[-worst:] if worst else []
    return top + [record for record in bottom if record not in top]


def _summary(records: Sequence[Record], *, is_narrow: bool) -> Any:
    columns = ("prompts", "samples", "reward", "right", "tokens", "cut off", "all equal")
    shown = [place for place, name in enumerate(columns) if name in _FIRST or not is_narrow]
    table = frame("domain", *(columns[place] for place in shown))
    align_numbers(table, columns)
    table.columns[0].no_wrap = True
    ordered = sorted(records, key=lambda record: record["domain"])
    for name, of_domain in groupby(ordered, key=lambda record: record["domain"]):
        numbers = _numbers(list(of_domain))
        table.add_row(name, *(numbers[place] for place in shown))
    if len({record["domain"] for record in records}) > 1:
        numbers = _numbers(records)
        table.add_row("all", *(numbers[place] for place in shown))
    return table


def _numbers(records: Sequence[Record]) -> list[str]:
    groups: dict[int, set[float]] = {}
    for record in records:
        groups.setdefault(record["place"], set()).add(record["reward"])
    count = len(records)
    return [
        f"{len(groups):,}",
        f"{count:,}",
        f"{sum(record['reward'] for record in records) / count:.3f}",
        f"{100 * sum(record['parts']['accuracy'] for record in records) / count:.1f} %",
        f"{sum(record['tokens'] for record in records) / count:,.1f}",
        f"{100 * sum(record['finish'] == 'length' for record in records) / count:.1f} %",
        f"{sum(len(rewards) == 1 for rewards in groups.values()):,}",
    ]


def printable(text: str) -> str:
    r"""The same text with control characters written out: a policy may sample what clears a screen.

    >>> printable("a\x1b[2J\nb\t\u202ec")
    'a\\x1b[2J\nb\t\\u202ec'
    """
    wild = {sign for sign in text if unicodedata.category(sign) in ("Cc", "Cf")} - set("\n\t")
    return text.translate({ord(sign): sign.encode("unicode_escape").decode() for sign in wild})


def _penalty(record: Record) -> str:
    """What its length costs it; older files do not say."""
    penalty = record.get("penalty", 0.0)
    return f"  penalty {penalty:.3g}" if penalty else ""


def _panel(record: Record, *, width: int) -> Panel:
    parts = "  ".join(f"{name} {value:g}" for name, value in record["parts"].items())
    facts = (
        f"reward {record['reward']:g}  {parts}{_penalty(record)}  advantage {record['advantage']:+.2f}  "
        f"{record['tokens']:,} tokens, "
        f"{'cut off' if record['finish'] == 'length' else 'ended'}"
    )
    if record["outcome"] != "scored":
        detail = f": {record['detail']}" if record.get("detail") else ""
        facts += f"  scorer {record['outcome']}{detail}"
    if not record["is_trained"]:
        facts += "  not learned from"
    asked = printable("\n".join(f"{turn['role']}: {turn['content']}" for turn in record["prompt"]))
    is_right = record["parts"]["accuracy"] > 0
    return Panel(
        Group(
            Text(asked, style="dim"),
            Text(""),
            Text(printable(record["text"]) or "(nothing)"),
            Text(""),
            Text.assemble(("right answer  ", "bold"), printable(str(record["truth"]))),
            Text(printable(facts), style="green" if is_right else "red"),
        ),
        title=Text(printable(f"{record['name']}  sample {record['sample']}  {record['domain']}")),
        title_align="left",
        border_style="green" if is_right else "red",
        width=width,
    )
