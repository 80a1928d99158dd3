"""What verbs print: tables on stdout, warnings on stderr."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import zip_longest


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table under its title; without any column names it has no header.

    The title is a line of its own, however long. Rows that do not fit break between words, never inside
    one: a table is readable in the 80 columns of a pipe, and wider only where its words ask for it.
    """
    if not any(columns) and (sys.stdout.encoding or "").lower().startswith("utf"):
        _print_framed(title, rows)
        return
    from rich import box  # not every verb prints a table, and this takes longer than some of them
    from rich.console import Console
    from rich.table import Table

    has_header = any(columns)
    console = Console(markup=False, highlight=False)
    gap, frame = (2, 0) if has_header else (3, 1)
    widths = _widths([(column, *cells) for column, cells in _columns(columns, rows)], gap, console.width - frame)
    console.width = max(console.width, sum(widths) + gap * len(widths) + frame)
    table = Table(
        show_header=has_header,
        box=box.SIMPLE_HEAD if has_header else box.SQUARE,
        padding=(0, 1, 0, 0) if has_header else (0, 1),
        show_edge=not has_header,
        pad_edge=not has_header,
    )
    for (column, cells), width in zip(_columns(columns, rows), widths, strict=True):
        is_number = has_header and all(cell[:1].isdigit() for cell in cells)
        table.add_column(column, overflow="fold", justify="right" if is_number else "left", width=width)
    for row in rows:
        table.add_row(*row)
    console.print(title, soft_wrap=True)
    console.print(table)


def _print_framed(title: str, rows: Sequence[Sequence[str]]) -> None:
    """A table without a header: a finished job prints one, and loading `rich` would cost it more than its check."""
    widths = _widths(list(zip(*rows, strict=True)), 3, shutil.get_terminal_size().columns - 1)
    rules = ["─" * (width + 2) for width in widths]
    lines = [title, f"┌{'┬'.join(rules)}┐"]
    for row in rows:
        folded = [textwrap.wrap(cell, width, break_on_hyphens=False) for cell, width in zip(row, widths, strict=True)]
        for cells in zip_longest(*folded, fillvalue=""):
            lines.append(f"│ {' │ '.join(map(str.ljust, cells, widths))} │")
    print("\n".join([*lines, f"└{'┴'.join(rules)}┘"]))


def _columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[tuple[str, list[str]]]:
    return [(column, [row[number] for row in rows]) for number, column in enumerate(columns)]


def _widths(columns: Sequence[Sequence[str]], gap: int, available: int) -> list[int]:
    """Of each column, as wide as its longest text; the widest gives way first, none below its longest word.

    >>> _widths([("name", "ab"), ("", "a few words more")], 2, 20)
    [4, 12]
    """
    widths = [max(map(len, texts)) for texts in columns]
    words = [max((len(word) for text in texts for word in text.split()), default=0) for texts in columns]
    while sum(widths) + gap * len(widths) > available:
        spare, widest = max(
            (width - word, number) for number, (width, word) in enumerate(zip(widths, words, strict=True))
        )
        if spare == 0:
            break
        widths[widest] -= 1
    return widths


def print_runs(runs: Sequence[tuple[str, bool]]) -> None:
    """Text in which what is trained on stands out: in colour on a terminal that has any, else in brackets."""
    from rich.console import Console

    from data_tools.marked_text import bracketed, coloured

    console = Console(markup=False, highlight=False)
    if console.is_terminal and console.color_system and not console.no_color:
        console.print(coloured(runs), soft_wrap=True)
    else:
        print(bracketed(runs))


def warn(message: str) -> None:
    """One line of `WARNING: …`."""
    print(f"WARNING: {message}", file=sys.stderr)
