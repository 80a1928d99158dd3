"""The packed rows of an sft stage: made of the datasets' lengths and masks alone, the same wherever they are made."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from data_tools.dataset import read_dataset
from data_tools.drawing import Drawn, Pool, draw
from data_tools.errors import DataError
from data_tools.indexed import IndexedReader
from data_tools.loss_mask import LossMasks, mask_path, read_masks
from data_tools.pack_rows import Conversations, RowOptions, Rows, make_rows
from megatron_ext.plan.stage_plan import SourcePlan
from megatron_ext.recipe.schema import SftRecipe


@lru_cache(maxsize=2)  # a process plans a stage and then reads it
def rows_of_stage(
    sources: tuple[SourcePlan, ...], options: SftRecipe, *, sequence_length: int, step: int, seed: int
) -> Rows:
    """Draws and packs what a stage reads.

    Args:
        sources: What each gives; `samples` are conversations, all passes together.
        options: How.
        sequence_length: Tokens of a row.
        step: `global_batch_size`.
        seed: Of the draw and the orders.

    Raises:
        DataError: A dataset is damaged, or holds a conversation that is too long.
    """
    conversations = [read_conversations(source.prefix) for source in sources]
    pools = [
        Pool(source.data_id, size=len(found.lengths), count=source.samples // options.passes)
        for source, found in zip(sources, conversations, strict=True)
    ]
    rounds = draw(pools, rule=options.draw, seed=seed) * options.passes
    row_options = _row_options(options, sequence_length, step=step, unit=options.batch_unit, seed=seed)
    return make_rows(conversations, rounds, row_options)


@lru_cache(maxsize=64)  # asked for at every validation
def held_out_rows(prefix: str, options: SftRecipe, *, sequence_length: int) -> Rows:
    """Packs all conversations of a held-out dataset once, a row a step; seeds of stages change nothing of it.

    Raises:
        DataError: The dataset is damaged, or holds a conversation that is too long.
    """
    conversations = read_conversations(prefix)
    size = len(conversations.lengths)
    drawn = Drawn(np.zeros(size, np.int64), np.arange(size))
    return make_rows([conversations], [drawn], _row_options(options, sequence_length, step=1, unit="rows", seed=0))


def _row_options(options: SftRecipe, length: int, *, step: int, unit: str, seed: int) -> RowOptions:
    return RowOptions(
        length=length,
        step=step,
        unit="rows" if unit == "rows" else "conversations",
        overlong=options.overlong,
        pad_multiple=options.pad_multiple,
        seed=seed,
    )


def read_conversations(prefix: str) -> Conversations:
    """Lengths and masks of a dataset, one pair or shards; no token is read.

    Raises:
        DataError: It is damaged.
    """
    dataset = read_dataset(prefix)
    lengths = np.concatenate([IndexedReader(shard.prefix).lengths for shard in dataset.shards])
    if dataset.chat is None:
        return Conversations(lengths, None)
    masks = LossMasks.joined([read_masks(shard.prefix) for shard in dataset.shards])
    if len(masks) != len(lengths):
        raise DataError(
            f"{mask_path(prefix)}: masks of {len(masks):,} conversations, the index has {len(lengths):,}; "
            "make them again with chat --overwrite"
        )
    return Conversations(lengths, masks)
