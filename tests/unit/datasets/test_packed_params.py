"""Packed parameters of rows that a pencil can check."""

from __future__ import annotations

import pytest

from megatron_ext.datasets.packed_params import packed_params


def test_every_token_carries_the_number_of_its_document() -> None:
    packed = packed_params([0, 2, 3, 6], total_tokens=6, reset="full")
    assert packed.seq_idx.tolist() == [[0, 0, 1, 2, 2, 2]]
    assert packed.cu_seqlens_q.tolist() == packed.cu_seqlens_kv.tolist() == [0, 2, 3, 6]
    assert (packed.qkv_format, packed.total_tokens) == ("thd", 6)


def test_padding_behind_the_last_document_is_a_segment_of_its_own() -> None:
    packed = packed_params([0, 2, 3], total_tokens=6, reset="full")
    assert packed.seq_idx.tolist() == [[0, 0, 1, 2, 2, 2]]
    assert packed.cu_seqlens_q.tolist() == [0, 2, 3, 6]


@pytest.mark.parametrize(("places", "longest"), [([0, 2, 3], 3), ([0, 5, 6], 5), ([0, 6], 6)])
def test_the_longest_segment_is_stated_exactly(places: list[int], longest: int) -> None:
    packed = packed_params(places, total_tokens=6, reset="full")
    assert (packed.max_seqlen_q, packed.max_seqlen_kv) == (longest, longest)


def test_resetting_attention_alone_gives_the_mixers_nothing_to_reset_by() -> None:
    packed = packed_params([0, 2, 6], total_tokens=6, reset="attention")
    assert packed.seq_idx is None
    assert (packed.cu_seqlens_q.tolist(), packed.total_tokens) == ([0, 2, 6], 6)


@pytest.mark.parametrize("places", [[], [0], [1, 6], [0, 3, 3, 6], [0, 4, 2, 6], [0, 7]])
def test_places_that_describe_no_row_are_refused(places: list[int]) -> None:
    with pytest.raises(ValueError, match="must begin with 0 and rise to at most total_tokens 6"):
        packed_params(places, total_tokens=6, reset="full")


def test_a_row_of_no_stated_length_cannot_be_described() -> None:
    with pytest.raises(TypeError, match="total_tokens"):
        packed_params([0, 6], reset="full")  # type: ignore[call-arg]
