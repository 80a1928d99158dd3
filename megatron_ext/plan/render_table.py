"""Tables in the house style."""

from __future__ import annotations

from rich import box
from rich.table import Table

from data_tools.quantities import format_exact
from megatron_ext.plan.stage_plan import BatchPlan

Row = tuple[str, str]


def frame(*columns: str, title: str | None = None) -> Table:
    """An empty table in the house style."""
    table = Table(*columns, box=box.SIMPLE, title=title, title_justify="left", pad_edge=False, show_edge=False)
    table.show_header = bool(columns) and any(columns)
    return table


def align_numbers(table: Table, names: tuple[str, ...]) -> None:
    """Puts the columns of these names flush right, on one line."""
    for column in table.columns:
        if column.header in names:
            column.justify = "right"
            column.no_wrap = True


def cut_rows(batch: BatchPlan) -> list[Row]:
    """Where a trial ends before its stage."""
    if batch.max_steps is None or batch.max_steps >= batch.total_steps:
        return []
    return [("cut", f"after step {format_exact(batch.max_steps)} (training.max_steps): a trial, not the stage")]
