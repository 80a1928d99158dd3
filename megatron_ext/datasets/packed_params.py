"""The packed parameters of a row that holds several documents: what Megatron-Core's layers are told.

Core's attention reads `cu_seqlens_q`, its Mamba-2 mixer reads `seq_idx` and nothing else. `PackedSeqParams`
makes `seq_idx` of `total_tokens`, and where that is left out the state runs from document to document
without a word (core 0.19.2, `packed_seq_params.py:46`, `ssm/mamba_mixer.py:744`). So they are built here only.

What is built describes the whole row: all ranks that share its tokens build the same from the same numbers,
whatever part of the row they hold. Tokens behind the last document are padding, a segment of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from megatron.core.packed_seq_params import PackedSeqParams

Reset = Literal["attention", "full"]
"""What stops at a document's end: attention (and the positions of RoPE) alone, or SSM and convolution too."""


def packed_params(
    cu_seqlens: Sequence[int], *, total_tokens: int, reset: Reset, device: torch.device | str = "cpu"
) -> PackedSeqParams:
    """Builds the parameters of one row `[1, total_tokens]`.

    >>> packed = packed_params([0, 3, 4], total_tokens=6, reset="full")
    >>> packed.cu_seqlens_q.tolist(), packed.seq_idx.tolist(), packed.max_seqlen_q
    ([0, 3, 4, 6], [[0, 0, 0, 1, 2, 2]], 3)

    Args:
        cu_seqlens: Where the documents begin, and where the last one ends: 0, then rising, at most
            `total_tokens`. With documents that are padded one by one: the padded places.
        total_tokens: Tokens of the whole row, with its padding, before any split over ranks.
        reset: What stops at a document's end.
        device: Where the layers are.

    Returns:
        `total_tokens` is set always; `seq_idx` `[1, total_tokens]` with `full`, else None, which leaves
        the Mamba-2 layers as they are.
    """
    bounds = list(cu_seqlens)
    is_rising = all(low < high for low, high in itertools.pairwise(bounds))
    if len(bounds) < 2 or bounds[0] != 0 or not is_rising or bounds[-1] > total_tokens:
        raise ValueError(
            f"cu_seqlens: {bounds[:8]}{' …' if len(bounds) > 8 else ''} must begin with 0 and rise to at most "
            f"total_tokens {total_tokens}."
        )
    if bounds[-1] < total_tokens:
        bounds.append(total_tokens)
    places = torch.tensor(bounds, dtype=torch.int32, device=device)
    # Exactly the longest: core's RoPE takes positions of the whole row where the two lengths are equal.
    longest = max(high - low for low, high in itertools.pairwise(bounds))
    packed = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=places,
        cu_seqlens_kv=places,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        total_tokens=total_tokens,
    )
    if reset == "attention":
        packed.seq_idx = None
    return packed
