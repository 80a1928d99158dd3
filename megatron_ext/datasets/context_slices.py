"""Which tokens of a row each rank of a context-parallel group holds.

Every document is cut into 2 x CP pieces of one length, of which rank r holds piece r and piece 2 CP - 1 - r: with
causal attention an early piece is little work and a late one much, so all ranks have the same. A row whose documents
are not kept apart is one document. All ranks of a group read the same rows and take their part:

    documents of 8 and 4 tokens, CP 2       0 1 2 3 4 5 6 7 | 8 9 10 11
    rank 0                                  0 1         6 7   8      11
    rank 1                                      2 3 4 5         9 10

Source: megatron-core 0.19, `utils.py` (`get_batch_on_this_cp_rank`: of rows, and by document) and
`ssm/mamba_context_parallel.py`, which puts the tokens back in order before the scan; Transformer Engine's
`thd_get_partitioned_indices`, which both use for packed rows and which needs a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from megatron_ext.datasets.batch import Batch


def places_of_rank(bounds: Sequence[int], *, rank: int, size: int) -> torch.Tensor:
    """The tokens of a row that a rank holds, in the order in which it holds them.

    >>> [places_of_rank((0, 8, 12), rank=rank, size=2).tolist() for rank in (0, 1)]
    [[0, 1, 6, 7, 8, 11], [2, 3, 4, 5, 9, 10]]

    Args:
        bounds: Where documents begin, from 0, and the end of the row; each length is a multiple of 2 x `size`, unless
            one rank holds the row.
        rank: Place in the context-parallel group.
        size: Ranks of the group.

    Returns:
        Places, `[row / size]` int64.
    """
    if size == 1:
        return torch.arange(bounds[-1])
    places = []
    for low, high in pairwise(bounds):
        piece, rest = divmod(high - low, 2 * size)
        assert rest == 0, f"a document of {high - low} tokens does not divide into {2 * size} pieces"
        places += [torch.arange(start, start + piece) for start in (low + rank * piece, high - (rank + 1) * piece)]
    return torch.cat(places)


def slice_of_rank(batch: Batch, *, rank: int, size: int) -> Batch:
    """A rank's part of a microbatch; `cu_seqlens` goes on describing the whole row.

    Args:
        batch: Whole rows, the same on all ranks of the group.
        rank: Place in the context-parallel group.
        size: Ranks of the group.
    """
    if size == 1:
        return batch
    rows, tokens = batch.model_shape
    bounds = batch.cu_seqlens or (0, tokens)
    of_ranks = [places_of_rank(bounds, rank=other, size=size) for other in range(rank + 1)]

    def part(tensor: torch.Tensor, places: torch.Tensor = of_ranks[rank]) -> torch.Tensor:
        return tensor.reshape(rows, tokens)[:, places]

    # A part's weights need not sum to a whole number, as a row's do: what is rounded off one rank goes to the next.
    weights = [float(part(batch.loss_mask, places).double().sum()) for places in of_ranks]
    return replace(
        batch,
        tokens=part(batch.tokens),
        labels=part(batch.labels),
        loss_mask=part(batch.loss_mask),
        position_ids=part(batch.position_ids),
        source_index=batch.source_index if batch.source_index.dim() == 1 else part(batch.source_index),
        weight_of_part=round(sum(weights)) - round(sum(weights[:-1])),
    )
