"""The policy in training as a Hugging Face folder, written from the ranks' own memory.

Tensors are put together one at a time: tensor-parallel ranks gather each, and the first of them writes it. So a push
of weights costs the file that servers read, and no checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from data_tools.tokenizer import describe
from megatron_ext.convert.hf_folder import HfContent, folder_in_writing, read_order, write_hf_folder
from megatron_ext.models.weights import sharded_weights
from megatron_ext.plan.stage_plan import StagePlan


@torch.no_grad()
def write_live_folder(to: Path, model: Any, plan: StagePlan, groups: ProcessGroupCollection) -> None:
    """Writes what `export` would write of a checkpoint of these weights, its README apart.

    All tensor-parallel ranks of one model must call this.

    Args:
        to: Folder to be made; it must not exist.
        model: The whole `HybridModel`, in `Float16Module` or not: one pipeline stage.
        plan: The plan that built it.
        groups: Process groups.

    Raises:
        UserError: On the rank that writes: `to` is there already, or cannot be written. The others return.
    """
    whole = _whole_tensors(model, plan, groups)
    try:
        if groups.tp.rank() == 0:
            with folder_in_writing(to) as folder:
                write_hf_folder(folder, _content(plan), _Reader(whole).read)
    finally:
        for _ in whole:  # the others wait for this rank in every tensor, whatever became of the file
            pass


class _Reader:
    """Gives tensors of a stream by their names, each as often as it is asked for in a row."""

    def __init__(self, stream: Iterator[tuple[str, Tensor]]) -> None:
        self._stream, self._name, self._tensor = stream, "", torch.empty(0)

    def read(self, name: str) -> Tensor:
        if name != self._name:
            self._name, self._tensor = next(self._stream)
        assert name == self._name, f"{name} was asked for, and {self._name} comes"
        return self._tensor


def _content(plan: StagePlan) -> HfContent:
    tokenizer = Path(plan.data.tokenizer)
    return HfContent(
        plan.model,
        plan.model_size.padded_vocab_size,
        tokenizer,
        describe(tokenizer),
        plan.batch.sequence_length,
        plan.precision,
    )


def _whole_tensors(model: Any, plan: StagePlan, groups: ProcessGroupCollection) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model on the CPU, in the order in which a folder is written."""
    sharded = sharded_weights(model, groups)
    apply_factories(sharded)
    parts = {part.key: part for part in nested_values(sharded) if isinstance(part, ShardedTensor)}
    offsets: list[dict[str, tuple[int, ...]]] = [{} for _ in range(groups.tp.size())]
    dist.all_gather_object(offsets, {name: part.global_offset for name, part in parts.items()}, group=groups.tp)
    for name, _ in groupby(read_order(plan.model, plan.model_size.padded_vocab_size)):
        yield name, _whole(parts[name], [of_rank[name] for of_rank in offsets], groups.tp)


def _whole(part: ShardedTensor, offsets: list[tuple[int, ...]], tp_group: dist.ProcessGroup) -> Tensor:
    """A tensor of all tensor-parallel ranks' parts, which lie at `offsets` of it."""
    mine = part.data.detach()
    if tuple(mine.shape) == tuple(part.global_shape):
        return mine.cpu()
    found = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in offsets]
    dist.all_gather(found, mine.contiguous(), group=tp_group)
    whole = torch.empty(part.global_shape, dtype=mine.dtype)
    for offset, piece in zip(offsets, found, strict=True):
        whole[tuple(slice(begin, begin + size) for begin, size in zip(offset, piece.shape, strict=True))] = piece.cpu()
    return whole
