"""Steps in the shapes of a CUDA graph give what the usual ones give; what only a GPU shows is tests/gpu's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.models.build import build_model
from megatron_ext.plan.placement import placed
from megatron_ext.plan.stage_plan import ExecutionPlan
from megatron_ext.rollout.cache import RolloutCache
from megatron_ext.rollout.forward import CachedForward
from megatron_ext.rollout.graphed import WARMUP_STEPS, GraphedForward
from megatron_ext.rollout.inprocess import InProcessEngine
from megatron_ext.rollout.protocol import Completion, Sampling
from tests.support.one_process import one_process, strengthen
from tests.support.plans import make_plan
from tests.support.rollout import prompts_of

ROPE = {"position_embedding_type": "rope"}


@pytest.fixture(scope="module")
def groups() -> Iterator[ProcessGroupCollection]:
    with one_process() as collection:
        yield collection


def sampled(groups: ProcessGroupCollection, *, has_graphs: bool, model: dict[str, str]) -> list[Completion]:
    """Seven texts in three slots: of other lengths, entering and leaving in the middle."""
    plan = make_plan(model=model, stage="rl", execution=ExecutionPlan(cuda_graphs=has_graphs))
    policy = strengthen(build_model(plan, groups), 4.0)
    engine = InProcessEngine(policy, plan, groups, num_slots=3, tokens_per_slot=24)
    return engine.generate(prompts_of([3, 9, 5, 5, 12, 2, 7]), Sampling(12, stop_ids=frozenset({7})))


@pytest.mark.parametrize("model", [{}, ROPE], ids=["no positions", "rope"])
def test_the_samples_are_the_usual_ones(groups: ProcessGroupCollection, model: dict[str, str]) -> None:
    usual, graphed = (sampled(groups, has_graphs=has_graphs, model=model) for has_graphs in (False, True))
    assert [one.token_ids for one in graphed] == [one.token_ids for one in usual]
    assert [one.finish for one in graphed] == [one.finish for one in usual]
    for one, other in zip(usual, graphed, strict=True):
        assert other.log_probs == pytest.approx(one.log_probs, abs=1e-5)


def test_full_steps_go_through_the_graph_once_they_are_warm(groups: ProcessGroupCollection) -> None:
    plan = make_plan()
    forward = CachedForward(strengthen(build_model(plan, groups), 4.0), max_tokens=16)
    caches = [RolloutCache(forward.model, num_slots=2, tokens_per_slot=16) for _ in range(2)]
    graphed = GraphedForward(forward, caches[1], max_tokens=16)
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10]])
    for one, cache in zip((forward, graphed), caches, strict=True):
        one.read_prompts(prompt, cache)
    for step in range(5):
        tokens = torch.tensor([20 + step, 30 + step])
        usual = forward.decode(tokens, caches[0], shortest=3 + step, longest=3 + step)
        torch.testing.assert_close(graphed.decode(tokens, caches[1], shortest=3 + step, longest=3 + step), usual)
    assert graphed.replayed == 5 - WARMUP_STEPS
    usual = forward.decode(torch.tensor([1]), caches[0], shortest=8, longest=8)
    torch.testing.assert_close(graphed.decode(torch.tensor([1]), caches[1], shortest=8, longest=8), usual)
    assert graphed.replayed == 5 - WARMUP_STEPS  # a text alone is no full step
    assert caches[0].lengths.tolist() == caches[1].lengths.tolist() == [9, 8]


def test_whole_slots_hold_as_many_tokens_as_a_slot_and_of_another_cache_none(groups: ProcessGroupCollection) -> None:
    forward = CachedForward(strengthen(build_model(make_plan(), groups), 4.0), max_tokens=8)
    usual, full, other = (RolloutCache(forward.model, num_slots=2, tokens_per_slot=8) for _ in range(3))
    graphed = GraphedForward(forward, full, max_tokens=8)
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10]])
    for one, cache in ((forward, usual), (graphed, full)):
        one.read_prompts(prompt, cache)
    for length in range(3, 8):  # the last step attends to the slot's last place
        tokens = torch.tensor([20 + length, 30 + length])
        expected = forward.decode(tokens, usual, shortest=length, longest=length)
        torch.testing.assert_close(graphed.decode(tokens, full, shortest=length, longest=length), expected)
    graphed.read_prompts(prompt, other)
    graphed.decode(torch.tensor([1, 2]), other, shortest=3, longest=3)
    assert (graphed.replayed, other.lengths.tolist(), full.lengths.tolist()) == (5 - WARMUP_STEPS, [4, 4], [8, 8])


def test_graphs_of_a_stage_are_its_own_and_not_of_those_who_read_its_checkpoints() -> None:
    graphed = ExecutionPlan(cuda_graphs=True)
    rl, pretrain = make_plan(stage="rl", execution=graphed), make_plan(execution=graphed)
    assert (rl.has_sampling_graphs, rl.has_layer_graphs) == (True, False)
    assert (pretrain.has_sampling_graphs, pretrain.has_layer_graphs) == (False, True)
    assert not placed(rl).has_sampling_graphs
