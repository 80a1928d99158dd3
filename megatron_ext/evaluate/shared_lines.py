"""Lines that ranks find together: each its share, then all of them on every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.distributed as dist

from data_tools.errors import UserError
from megatron_ext.evaluate.kept_items import KeptItems, Key, Line
from megatron_ext.runtime.agreement import raise_on_all_ranks


def lines_of_all_ranks(
    items: KeptItems, task: str, find: Callable[[Mapping[Key, Line]], list[Line]]
) -> dict[Key, Line]:
    """All lines of a task by item and sample: those that a killed run has left, and those that are found now.

    All ranks must call this.

    Args:
        items: Of the evaluation.
        task: Name of the task.
        find: Gets the lines that are there, and gives those of this rank's share of the rest, which it has kept.

    Raises:
        UserError: Of any rank, on all of them.
    """
    there = {(line["item"], line["sample"]): line for line in items.of(task)}
    error: UserError | None = None
    mine: list[Line] = []
    try:
        mine = find(there)
    except UserError as caught:
        error = caught
    raise_on_all_ranks(error)
    of_ranks: list[list[Line]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_ranks, mine)
    return there | {(line["item"], line["sample"]): line for lines in of_ranks for line in lines}
