"""Decoding with caches equals running the whole text again for every token.

Logits within 1e-5 in float32 where the largest is about 3 (measured 2e-6): the same sums in another
order. Greedy tokens are then the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_ext.models.build import build_model
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.rollout.generate import generate
from tests.support.one_process import logits_of, one_process, random_tokens, strengthen
from tests.support.plans import make_plan
from tests.support.rollout import next_token_logits

TOLERANCE = 1e-5
NEW_TOKENS = 30
SHAPES = {
    "no positions": {},
    "rope": {"position_embedding_type": "rope"},
    "tied": {"share_embeddings_and_output_weights": True},
    "one group": {"mamba_num_groups": 1, "num_query_groups": 1},
}


@pytest.fixture(scope="module")
def groups() -> Iterator[ProcessGroupCollection]:
    with one_process() as collection:
        yield collection


def build(groups: ProcessGroupCollection, shape: str) -> tuple[StagePlan, HybridModel]:
    plan = make_plan(model={"hybrid_layer_pattern": "M-*M*", **SHAPES[shape]}, data={"eod_id": 127})
    return plan, strengthen(build_model(plan, groups))


def recomputed(model: HybridModel, prompt: list[int]) -> tuple[list[int], Tensor]:
    """Greedy tokens and the logits that chose them, without caches; padded ids are not chosen."""
    tokens, logits = list(prompt), []
    for _ in range(NEW_TOKENS):
        logits.append(logits_of(model, torch.tensor([tokens]))[0, -1])
        tokens.append(int(logits[-1][:120].argmax()))
    return tokens[len(prompt) :], torch.stack(logits)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prompt_length", [1, 3, 70])
def test_cached_logits_and_tokens_equal_recomputed_ones(
    groups: ProcessGroupCollection, shape: str, prompt_length: int
) -> None:
    plan, model = build(groups, shape)
    prompt = random_tokens(1, prompt_length)[0].tolist()
    tokens, expected = recomputed(model.eval(), prompt)
    assert generate(model, plan, prompt, max_new_tokens=NEW_TOKENS) == tokens
    appended: list[int] = []
    cached = []
    for logits, token in zip(next_token_logits(model, prompt, appended, NEW_TOKENS), tokens, strict=True):
        cached.append(logits)
        appended.append(token)
    torch.testing.assert_close(torch.stack(cached), expected, rtol=0, atol=TOLERANCE)


def test_rope_tells_positions_apart(groups: ProcessGroupCollection) -> None:
    _, model = build(groups, "rope")
    _, without = build(groups, "no positions")
    tokens = random_tokens(1, 40)
    assert not torch.allclose(logits_of(model, tokens), logits_of(without, tokens), atol=0.01)
