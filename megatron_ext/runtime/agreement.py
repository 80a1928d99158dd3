"""What all ranks must see alike: an error of one of them, a fact that the main one read."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from data_tools.errors import UserError
from megatron_ext.runtime.device import device


def raise_on_all_ranks(error: UserError | None) -> None:
    """Raises one rank's error on every rank; without one it costs a single small reduction.

    All ranks must call this. A rank that raised alone would leave the others waiting in the next
    collective until it times out, and its message would be lost among theirs.

    Args:
        error: What went wrong on this rank; None if nothing did.

    Raises:
        UserError: The error of the lowest rank that has one.
    """
    failed = torch.tensor(int(error is not None), device=device())
    dist.all_reduce(failed, op=dist.ReduceOp.MAX)
    if not failed:
        return
    errors: list[UserError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    raise next(found for found in errors if found is not None)


def answer_of_main_rank(answer: Any) -> Any:
    """The main rank's answer, on every rank: on a slow file system the others may read another.

    All ranks must call this.
    """
    answers = [answer]
    dist.broadcast_object_list(answers, src=0)
    return answers[0]
