"""Tables in the house style."""

from __future__ import annotations

from rich import box
from rich.table import Table

Row = tuple[str, str]


def frame(*columns: str, title: str | None = None) -> Table:
    """An empty table in the house style."""
    table = Table(*columns, box=box.SIMPLE, title=title, title_justify="left", pad_edge=False, show_edge=False)
    table.show_header = bool(columns) and any(columns)
    return table
