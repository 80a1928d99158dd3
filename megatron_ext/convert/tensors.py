"""A tensor of one side put together from rows of the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megatron_ext.convert.mapping import Piece, core_shapes, hf_shapes


def hf_tensor(pieces: Sequence[Piece], read: Callable[[str], Tensor], *, dtype: torch.dtype) -> Tensor:
    """A Hugging Face tensor.

    Args:
        pieces: All of it.
        read: Gives a whole Megatron-Core tensor.
        dtype: Of the result.
    """
    (shape,) = hf_shapes(pieces).values()
    whole = torch.empty(shape, dtype=dtype)
    for piece in pieces:
        rows = read(piece.core)[piece.core_row : piece.core_row + piece.rows]
        whole[piece.hf_row : piece.hf_row + piece.rows] = rows
    return whole


def core_tensor(
    pieces: Sequence[Piece], read: Callable[[str, int, int], Tensor], *, dtype: torch.dtype, rows: int
) -> tuple[Tensor, int]:
    """A Megatron-Core tensor, and how many of its rows the pieces fill.

    Args:
        pieces: All that is known of it.
        read: Gives rows, from one to before another, of a Hugging Face tensor.
        dtype: Of the result.
        rows: That it is to have; those behind the pieces are left as they come.
    """
    (shape,) = core_shapes(pieces).values()
    whole = torch.empty((rows, *shape[1:]), dtype=dtype)
    for piece in pieces:
        found = read(piece.hf, piece.hf_row, piece.hf_row + piece.rows)
        whole[piece.core_row : piece.core_row + piece.rows] = found
    return whole, shape[0]


def by_hf_name(pieces: Sequence[Piece]) -> dict[str, list[Piece]]:
    """The pieces of each Hugging Face tensor."""
    found: dict[str, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(piece.hf, []).append(piece)
    return found
