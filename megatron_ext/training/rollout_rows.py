"""Groups of completions as packed rows: prompt and completion are one piece, kept apart from the others of its row.

Longest first, each into the fullest row that holds it. Everything here hangs on the completions alone, not on who
sampled them: the rows of an update are the same in every data-parallel layout, dealt to ranks as those of sft are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_tools.packing import best_fit_decreasing
from megatron_ext.datasets.rollout_batch import RolloutBatch
from megatron_ext.objectives.rl import RlOptions, response_weight
from megatron_ext.training.rollout_groups import Group, Scored

PADDING = "padding"
"""Sample id of a row that only fills up an update."""


@dataclass(frozen=True)
class Piece:
    """A prompt and one completion of it, as they are trained on."""

    prompt: tuple[int, ...]
    sample: Scored
    advantage: float
    source: int

    def __len__(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + self.sample.length


def pieces_of(groups: Sequence[Group]) -> list[Piece]:
    """The pieces of some groups, in order."""
    return [
        Piece(group.prompt.row.ids, sample, advantage, group.prompt.source)
        for group in groups
        for sample, advantage in zip(group.samples, group.advantages, strict=True)
    ]


def pack_pieces(pieces: Sequence[Piece], length: int) -> list[list[Piece]]:
    """The pieces of each row of `length` tokens."""
    packs = best_fit_decreasing(np.array([len(piece) for piece in pieces], np.int64), length)
    rows: list[list[Piece]] = [[] for _ in range(int(packs.max()) + 1)]
    for piece, row in zip(pieces, packs.tolist(), strict=True):
        rows[row].append(piece)
    return rows


def make_row(pieces: Sequence[Piece], *, length: int, eod_id: int, options: RlOptions, sample_id: str) -> RolloutBatch:
    """One row, `[1, length]`; no pieces give a row of padding.

    A completion's first token is the label of its prompt's last one, so what is trained begins there.

    Args:
        pieces: At most `length` tokens together.
        length: Tokens of the row.
        eod_id: What fills it up.
        options: Of the stage.
        sample_id: Its name.
    """
    tokens = torch.full((length,), eod_id, dtype=torch.int64)
    labels = tokens.clone()
    mask, divisor, advantages, sampled = (torch.zeros(length) for _ in range(4))
    source_index = torch.zeros(length, dtype=torch.int64)
    places, filled = [], 0
    for piece in pieces:
        ids = torch.tensor(piece.prompt + piece.sample.completion.token_ids)
        end, first = filled + len(piece), filled + len(piece.prompt) - 1
        tokens[filled:end] = ids
        labels[filled : end - 1] = ids[1:]
        weight = response_weight(piece.sample.length, options, is_cut_off=piece.sample.is_cut_off)
        mask[first : end - 1] = weight.per_token
        divisor[first] = weight.counted
        advantages[first : end - 1] = piece.advantage
        sampled[first : end - 1] = torch.tensor(piece.sample.completion.log_probs)
        source_index[filled:end] = piece.source
        places.append(filled)
        filled = end
    starts = [*places, filled, length] if filled < length else [*places, length]
    return RolloutBatch(
        tokens=tokens[None],
        labels=labels[None],
        loss_mask=mask[None],
        position_ids=torch.arange(length)[None],
        source_index=source_index[None],
        sample_ids=(sample_id,),
        cu_seqlens=tuple(dict.fromkeys(starts)),
        divisor=divisor[None],
        advantages=advantages[None],
        sampled_log_probs=sampled[None],
    )
