"""Every layout samples what one process samples, and its log-probabilities are its own training path's.

Tokens are equal, log-probabilities within 1e-5 in float32: tensor parallelism adds the same products in another order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from megatron_ext.rollout.protocol import Completion
from tests.support.distributed import run_distributed
from tests.support.layout_rollouts import TOLERANCE, recompute_greedily, sample

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2 sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "dp2": {"data_parallel_size": 2},
    "tp2 dp2": {"tensor_model_parallel_size": 2, "data_parallel_size": 2},
}


@cache
def alone(shape: str) -> list[Completion]:
    ((completions, _, _),) = run_distributed(sample, 1, {}, SHAPES[shape])
    return completions


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rope, tied": {"position_embedding_type": "rope", "share_embeddings_and_output_weights": True},
}


@pytest.mark.parametrize(
    ("name", "shape"), [("tp2", "plain"), ("tp2 sp", "rope, tied"), ("dp2", "plain"), ("tp2 dp2", "plain")]
)
def test_a_layout_samples_what_one_process_samples(name: str, shape: str) -> None:
    layout = LAYOUTS[name]
    tensor, data = (layout.get(key, 1) for key in ("tensor_model_parallel_size", "data_parallel_size"))
    ranks = run_distributed(sample, tensor * data, layout, SHAPES[shape])
    expected = alone(shape)
    found: list[Completion] = []
    for first in range(0, tensor * data, tensor):
        completions, ended, share = ranks[first]
        assert sorted({completion.prompt_index for completion in completions}) == share
        for others, others_ended, _ in ranks[first : first + tensor]:
            assert (others, others_ended) == (completions, ended), "tensor-parallel ranks went apart"
        found += completions
    found.sort(key=lambda completion: (completion.prompt_index, completion.sample_index))
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    assert [c.finish for c in found] == [c.finish for c in expected]
    assert {c.finish for c in found} == {"stop", "length"}
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(mine.log_probs), torch.tensor(theirs.log_probs), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_tokens_and_logits_of_two_tensor_parallel_ranks_are_recomputed_ones(shape: str) -> None:
    """Ten samples of unequal prompts pass through three slots."""
    first, second = run_distributed(recompute_greedily, 2, LAYOUTS["tp2"], SHAPES[shape])
    assert first == second
    assert len(first) == 10
    assert len({completion.token_ids for completion in first}) == 5
