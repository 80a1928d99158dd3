"""Every layout samples what one process samples, and its log-probabilities are its own training path's.

Tokens are equal, log-probabilities within 1e-5 in float32: tensor parallelism adds the same products in another order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

from megatron_ext.models.build import build_model
from megatron_ext.rollout.inprocess import InProcessEngine
from megatron_ext.rollout.protocol import Completion, Sampling
from megatron_ext.rollout.share import share_prompts
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.runtime.seed import seed_everything
from tests.support.distributed import run_distributed
from tests.support.one_process import strengthen
from tests.support.plans import make_plan
from tests.support.rollout import prompts_of

PROMPTS = prompts_of((6, 3, 17, 6, 1), num_samples=2)
SAMPLING = Sampling(8, temperature=0.9, top_p=0.95, stop_ids=frozenset(range(12)))
TOLERANCE = 1e-5
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2 sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "dp2": {"data_parallel_size": 2},
    "tp2 dp2": {"tensor_model_parallel_size": 2, "data_parallel_size": 2},
}
Sampled = tuple[list[Completion], list[Completion], list[int]]


def sample(layout: dict[str, Any], model_changes: dict[str, Any]) -> Sampled:
    """Completions of this rank, as they ended, and the tokens a padded row is given by the training path."""
    plan = make_plan(model=model_changes, layout=layout)
    ranks = layout.get("tensor_model_parallel_size", 1)
    with process_groups(Launch.from_environment(), tensor_model_parallel_size=ranks) as groups:
        seed_everything(plan.seed)  # core draws dropout under sequence parallelism, of 0 too
        model = strengthen(build_model(plan, groups))
        engine = InProcessEngine(model, plan, groups, num_slots=3, tokens_per_slot=64)
        ended: list[Completion] = []
        completions = engine.generate(PROMPTS, SAMPLING, on_finished=ended.append)
        for completion in completions:
            prompt = PROMPTS[completion.prompt_index].ids
            row = torch.tensor([[*prompt, *completion.token_ids]])
            row = torch.cat([row, row.new_zeros(1, row.shape[1] % 2)], dim=1)  # sequence parallelism halves it
            with torch.no_grad():
                logits = model(row, torch.arange(row.shape[1])[None], None)
                logits = gather_from_tensor_model_parallel_region(logits, group=groups.tp)[0]
            log_probs = (logits / SAMPLING.temperature).log_softmax(-1)
            places = torch.arange(len(prompt), len(prompt) + len(completion.token_ids))
            expected = log_probs[places - 1, row[0, places]]
            torch.testing.assert_close(torch.tensor(completion.log_probs), expected, rtol=0, atol=TOLERANCE)
        return completions, ended, share_prompts(PROMPTS, groups.dp.size(), max_new_tokens=8)[groups.dp.rank()]


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
