"""The in-process engine equals running the whole text again for every token.

Logits within 1e-5 in float32 where the largest is about 3 (measured 2e-6): the same sums in another order. Greedy
tokens are then the same, and log-probabilities are the training path's within the same 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.models.build import build_model
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.rollout.cache import RolloutCache
from megatron_ext.rollout.forward import CachedForward
from megatron_ext.rollout.inprocess import InProcessEngine
from megatron_ext.rollout.protocol import Sampling
from tests.support.one_process import logits_of, one_process, strengthen
from tests.support.plans import make_plan
from tests.support.rollout import VOCAB_SIZE, prompts_of, recomputed_greedily, training_log_probs

TOLERANCE = 1e-5
NEW_TOKENS = 20
SHAPES = {
    "no positions": {},
    "rope": {"position_embedding_type": "rope"},
    "tied": {"share_embeddings_and_output_weights": True},
    "one group": {"mamba_num_groups": 1, "num_query_groups": 1},
}
UNEQUAL = (1, 70, 3, 3, 2, 70, 9)


@pytest.fixture(scope="module")
def groups() -> Iterator[ProcessGroupCollection]:
    with one_process() as collection:
        yield collection


def build(groups: ProcessGroupCollection, shape: str) -> tuple[StagePlan, HybridModel]:
    plan = make_plan(model={"hybrid_layer_pattern": "M-*M*", **SHAPES[shape]})
    return plan, strengthen(build_model(plan, groups)).eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_tokens_equal_recomputed_ones_while_prompts_come_and_go(
    groups: ProcessGroupCollection, shape: str
) -> None:
    """Seven unequal prompts through three slots: those that end early are replaced in the middle of the others."""
    plan, model = build(groups, shape)
    prompts = prompts_of(UNEQUAL)
    whole = [recomputed_greedily(model, prompt.ids, NEW_TOKENS)[0] for prompt in prompts]
    stop = whole[3][7]  # ends some samples long before the others
    engine = InProcessEngine(model, plan, groups, num_slots=3, tokens_per_slot=100)
    completions = engine.generate(prompts, Sampling(NEW_TOKENS, temperature=0.0, stop_ids=frozenset({stop})))
    expected = [tuple(text[: text.index(stop) + 1] if stop in text else text) for text in whole]
    assert [completion.token_ids for completion in completions] == expected
    assert len({len(text) for text in expected}) > 1, "no sample left before the others"
    for prompt, completion in zip(prompts, completions, strict=True):
        torch.testing.assert_close(
            torch.tensor(completion.log_probs),
            training_log_probs(model, prompt, completion),
            rtol=0,
            atol=TOLERANCE,
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_cached_logits_equal_recomputed_ones_at_unequal_lengths_and_after_a_refill(
    groups: ProcessGroupCollection, shape: str
) -> None:
    _, model = build(groups, shape)
    forward, cache = CachedForward(model, max_tokens=100), RolloutCache(model, num_slots=4, tokens_per_slot=100)
    prompts = prompts_of((40, 1, 7, 30))
    texts = [list(prompt.ids) for prompt in prompts]

    def read(index: int, slot: int) -> torch.Tensor:
        length = len(prompts[index].ids)
        own = RolloutCache(model, num_slots=1, tokens_per_slot=length)
        logits = forward.read_prompts(torch.tensor([prompts[index].ids]), own)
        cache.copy(own, [0], [slot], length=length)
        return logits

    rows = [0, 1, 2]
    logits = torch.cat([read(row, row) for row in rows])
    for step in range(NEW_TOKENS):
        expected = torch.stack([logits_of(model, torch.tensor([texts[row]]))[0, -1] for row in rows])
        torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)
        chosen = logits[:, :VOCAB_SIZE].argmax(-1)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            texts[row].append(token)
        lengths = cache.lengths[:3]
        logits = forward.decode(chosen, cache, shortest=int(lengths.min()), longest=int(lengths.max()))
        if step == NEW_TOKENS // 2:  # the longest leaves, and the last prompt takes its slot
            rows[0], logits = 3, torch.cat([read(3, 0), logits[1:]])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_sampled_log_probs_are_the_training_paths(groups: ProcessGroupCollection, temperature: float) -> None:
    plan, model = build(groups, "rope")
    prompts = prompts_of(UNEQUAL, num_samples=3)
    engine = InProcessEngine(model, plan, groups, num_slots=5, tokens_per_slot=100)
    completions = engine.generate(prompts, Sampling(NEW_TOKENS, temperature=temperature, top_p=0.9, top_k=50))
    assert len(completions) == 21
    for completion in completions:
        expected = training_log_probs(model, prompts[completion.prompt_index], completion, temperature=temperature)
        torch.testing.assert_close(torch.tensor(completion.log_probs), expected, rtol=0, atol=TOLERANCE)
