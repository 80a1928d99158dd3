"""Each rank gets the tokens that core's and Transformer Engine's layers take it to have; a batch's parts add up."""

from __future__ import annotations

import itertools

import pytest
import torch
from megatron.core.ssm.mamba_context_parallel import _undo_attention_load_balancing

from megatron_ext.datasets.batch import Batch
from megatron_ext.datasets.context_slices import places_of_rank, slice_of_rank
from tests.support.attention_on_cpu import thd_get_partitioned_indices


def packed_row() -> Batch:
    """Conversations of 8 and 4 tokens and 4 of padding; 5 of the first weigh 3/5, all of the second 1/2 each."""
    weights = torch.tensor([[0, 0.6, 0.6, 0.6, 0, 0.6, 0.6, 0, 0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0]])
    tokens = torch.arange(16)[None]
    return Batch(
        tokens=tokens,
        labels=tokens + 1,
        loss_mask=weights,
        position_ids=tokens,
        source_index=torch.tensor([[0] * 8 + [1] * 4 + [0] * 4]),
        sample_ids=("row:0",),
        cu_seqlens=(0, 8, 12, 16),
    )


def parts_of(batch: Batch, size: int) -> list[Batch]:
    return [slice_of_rank(batch, rank=rank, size=size) for rank in range(size)]


def test_each_document_gives_a_rank_an_early_and_a_late_piece() -> None:
    first, second = parts_of(packed_row(), 2)
    assert first.tokens.tolist() == [[0, 1, 6, 7, 8, 11, 12, 15]]
    assert second.tokens.tolist() == [[2, 3, 4, 5, 9, 10, 13, 14]]
    assert first.labels.tolist() == [[1, 2, 7, 8, 9, 12, 13, 16]]
    assert first.position_ids.tolist() == first.tokens.tolist()
    assert first.source_index.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]]
    assert first.loss_mask.tolist() == packed_row().loss_mask[:, first.tokens[0]].tolist()


def test_what_describes_the_row_is_the_same_on_all_ranks() -> None:
    for part in parts_of(packed_row(), 2):
        assert (part.cu_seqlens, part.sample_ids) == ((0, 8, 12, 16), ("row:0",))


def test_rows_that_are_not_packed_are_each_cut_as_one_document() -> None:
    batch = Batch.from_rows(torch.arange(18).view(2, 9).numpy(), source_index=[0, 1], sample_ids=["a", "b"])
    first, second = parts_of(batch, 2)
    assert first.tokens.tolist() == [[0, 1, 6, 7], [9, 10, 15, 16]]
    assert second.labels.tolist() == [[3, 4, 5, 6], [12, 13, 14, 15]]
    assert first.source_index.tolist() == [0, 1]


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_packed_places_are_those_of_transformer_engine(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    lengths = (torch.randint(1, 6, (7,), generator=generator) * 2 * size).tolist()
    bounds = [0, *itertools.accumulate(lengths)]
    for rank in range(size):
        theirs = thd_get_partitioned_indices(torch.tensor(bounds, dtype=torch.int32), bounds[-1], size, rank)
        assert places_of_rank(bounds, rank=rank, size=size).tolist() == theirs.tolist()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_core_puts_the_parts_of_a_whole_row_back_in_order(size: int) -> None:
    row = torch.cat([places_of_rank((0, 4 * size), rank=rank, size=size) for rank in range(size)])
    assert _undo_attention_load_balancing(row, size).tolist() == list(range(4 * size))


@pytest.mark.parametrize("size", [1, 2])
def test_weights_of_parts_sum_to_the_whole_rows(size: int) -> None:
    batch = packed_row()
    weights = [part.weight for part in parts_of(batch, size)]
    assert batch.weight == 5
    assert sum(map(int, weights)) == 5
    assert {weight.dtype for weight in weights} == {torch.int32}


def test_what_is_rounded_off_one_rank_goes_to_the_next() -> None:
    batch = packed_row()
    batch.loss_mask[0, 1:8] = torch.tensor([0.7, 0, 0, 0, 0.9, 0.7, 0.7])  # 2.1 and 0.9 on the two ranks
    batch.loss_mask[0, 8:12] = torch.tensor([0.25, 0.25, 0.25, 0.25])
    assert [int(part.weight) for part in parts_of(batch, 2)] == [3, 1]


def test_a_document_that_does_not_divide_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="a document of 6 tokens does not divide into 4 pieces"):
        places_of_rank((0, 6, 8), rank=0, size=2)
