"""Bytes between ranks, by a pencil: 10 tokens a microbatch, 32 hidden, two bytes a number."""

from __future__ import annotations

import pytest

from megatron_ext.plan.hardware import GPUS, LINK_RATIO, link
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.plan.traffic import context_bytes, data_bytes, data_seconds, microbatch_traffic
from tests.support.plans import make_plan

GPU = GPUS["h100"]._replace(nvlink=1000.0, network=100.0)


def ranks(*, tensor: int = 1, pipeline: int = 1, context: int = 1, data: int = 1, **more: bool) -> StagePlan:
    return make_plan(
        layout={
            "tensor_model_parallel_size": tensor,
            "pipeline_model_parallel_size": pipeline,
            "context_parallel_size": context,
            "data_parallel_size": data,
            **more,
        }
    )


def test_a_link_inside_a_node_is_nvlink_and_between_nodes_the_adapters_of_its_members() -> None:
    assert link(GPU, size=8, stride=1) == 1000 * LINK_RATIO
    assert link(GPU, size=4, stride=2) == 1000 * LINK_RATIO
    assert link(GPU, size=16, stride=1) == 8 * 100 * LINK_RATIO
    assert link(GPU, size=16, stride=4) == 2 * 100 * LINK_RATIO
    assert link(GPU, size=2, stride=256) == 100 * LINK_RATIO


def test_a_ring_through_nodes_is_never_faster_than_nvlink() -> None:
    assert link(GPU._replace(network=1e9), size=16, stride=1) == 1000 * LINK_RATIO


@pytest.mark.parametrize(("is_split", "passes"), [(True, 5), (False, 4)])
def test_a_layer_sends_its_tokens_five_times_by_half_or_reduces_them_twice(is_split: bool, passes: int) -> None:
    plan = ranks(tensor=2, pipeline=4, sequence_parallel=is_split)
    sent = microbatch_traffic(plan.model, plan.layout, GPU, symbols="M-", stage=1, tokens=10)
    assert sent.tensor == pytest.approx(passes * 2 * (1 / 2) * 10 * 32 * 2 / (1000 * LINK_RATIO))


def test_the_embedding_counts_as_two_passes_and_the_output_layer_as_three() -> None:
    plan = ranks(tensor=2, sequence_parallel=True)
    sent = microbatch_traffic(plan.model, plan.layout, GPU, symbols="M-", stage=0, tokens=10)
    assert sent.tensor == pytest.approx((5 * 2 + 5) * (1 / 2) * 10 * 32 * 2 / (1000 * LINK_RATIO))


def test_a_stage_sends_to_each_neighbour_once_forward_and_once_backward() -> None:
    plan = ranks(pipeline=4)
    first, middle = (
        microbatch_traffic(plan.model, plan.layout, GPU, symbols="M", stage=stage, tokens=10) for stage in (0, 1)
    )
    assert first.pipeline == pytest.approx(2 * 10 * 32 * 2 / (1000 * LINK_RATIO))
    assert middle.pipeline == pytest.approx(2 * first.pipeline)


def test_pipeline_stages_on_two_nodes_talk_through_one_adapter() -> None:
    plan = ranks(pipeline=2, data=8)
    sent = microbatch_traffic(plan.model, plan.layout, GPU, symbols="M", stage=0, tokens=10)
    assert sent.pipeline == pytest.approx(2 * 10 * 32 * 2 / (100 * LINK_RATIO))


def test_context_ranks_pass_keys_round_and_change_rows_for_heads() -> None:
    """4 ranks: 2 groups of 8 channels, keys and values; z of 2 x 64 + 2 x 2 x 8 + 4, w of 64."""
    plan = ranks(context=4)
    assert context_bytes(plan.model, plan.layout, symbols="*", tokens=10) == 3 * 3 * 32 * 10 * 2
    assert context_bytes(plan.model, plan.layout, symbols="M", tokens=10) == 2 * (3 / 4) * (164 + 64) * 10 * 2
    assert context_bytes(plan.model, plan.layout, symbols="-", tokens=10) == 0


def test_gradients_are_reduced_twice_or_scattered_and_parameters_gathered() -> None:
    shared = ranks(data=4, use_distributed_optimizer=True)
    assert data_bytes(shared.layout, numel=1000) == (4 + 2) * (3 / 4) * 1000
    assert data_bytes(ranks(data=4).layout, numel=1000) == 2 * 4 * (3 / 4) * 1000
    assert data_seconds(shared.layout, GPU, numel=1000) == pytest.approx(4500 / (1000 * LINK_RATIO))


def test_a_rank_alone_sends_nothing() -> None:
    plan = ranks()
    assert tuple(microbatch_traffic(plan.model, plan.layout, GPU, symbols="M-*M", stage=0, tokens=10)) == (0, 0, 0)
    assert data_seconds(plan.layout, GPU, numel=1000) == 0
