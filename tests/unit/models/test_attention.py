"""Causal grouped-query attention."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_ext.datasets.packed_params import packed_params
from megatron_ext.models.attention import ScaledDotProductAttention
from megatron_ext.models.config import transformer_config
from megatron_ext.models.limits import UnsupportedError
from tests.support.plans import make_plan

HEADS, GROUPS, WIDTH, LENGTH = 4, 2, 8, 5


def attention() -> ScaledDotProductAttention:
    config = transformer_config(make_plan())
    return ScaledDotProductAttention(config, 1, AttnMaskType.causal, "self")


def queries_keys_values() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((LENGTH, 2, HEADS, WIDTH), (LENGTH, 2, GROUPS, WIDTH), (LENGTH, 2, GROUPS, WIDTH))
    q, k, v = (torch.randn(*shape, generator=generator) for shape in shapes)
    return q, k, v


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of every head and token, one at a time."""
    length, rows = q.shape[:2]
    out = torch.zeros(length, rows, HEADS, WIDTH)
    for t in range(length):
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            scores = (q[t, :, head, None] * k[: t + 1, :, group].transpose(0, 1)).sum(-1) / WIDTH**0.5
            out[t, :, head] = (scores.softmax(-1)[..., None] * v[: t + 1, :, group].transpose(0, 1)).sum(1)
    return out.flatten(2)


def test_equals_the_definition() -> None:
    q, k, v = queries_keys_values()
    torch.testing.assert_close(attention()(q, k, v, None), by_hand(q, k, v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("new_tokens", [1, 2, 4])
def test_the_last_tokens_see_all_earlier_keys(new_tokens: int) -> None:
    q, k, v = queries_keys_values()
    tail = attention()(q[-new_tokens:], k, v, None)
    torch.testing.assert_close(tail, by_hand(q, k, v)[-new_tokens:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("places", [[0, 1, 4], [0, 2, 3, 4, 5], [0, 5]])
def test_a_packed_row_attends_within_each_document(places: list[int]) -> None:
    q, k, v = (t[:, 0] for t in queries_keys_values())  # [s, heads, d]: core drops the row's dimension
    packed = packed_params(places, total_tokens=LENGTH, reset="attention")
    bounds = sorted({*places, LENGTH})
    by_document = [by_hand(*(t[low:high, None] for t in (q, k, v))) for low, high in pairwise(bounds)]
    out = attention()(q, k, v, None, packed_seq_params=packed)
    torch.testing.assert_close(out, torch.cat(by_document), rtol=1e-5, atol=1e-6)


def test_packed_parameters_of_another_row_are_refused() -> None:
    q, k, v = (t[:, 0] for t in queries_keys_values())
    packed = packed_params([0, 4], total_tokens=LENGTH + 1, reset="full")
    with pytest.raises(UnsupportedError, match="total_tokens 6, for 1 row.s. of 5 tokens"):
        attention()(q, k, v, None, packed_seq_params=packed)


def test_a_sequence_split_over_ranks_is_refused() -> None:
    config = transformer_config(make_plan())
    config.context_parallel_size = 2
    with pytest.raises(UnsupportedError, match="context_parallel_size: 2"):
        ScaledDotProductAttention(config, 1, AttnMaskType.causal, "self")
