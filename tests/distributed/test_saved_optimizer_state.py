"""What a save puts under a parameter's name is that parameter's own state, where a buffer has several buckets.

An embedding tied over a pipeline is alone in its bucket. The sizes leave padding between the two buckets of the
first stage, which core 0.19.2 loses count of (`training/parts.py`); no other layout of ours has it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_ext.models.build import build_model
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.training.optimizer import make_optimizer
from megatron_ext.training.optimizer_state import fill_states
from megatron_ext.training.parts import wrap_model
from tests.support.distributed import run_distributed
from tests.support.plans import make_plan

FACTORS = {"param": 1, "fp32_param": 1, "exp_avg": 2, "exp_avg_sq": 3}
"""The states that the test gives a parameter, as multiples of its main weight."""
EMBEDDING = "embedding.word_embeddings.weight"


def tied_plan(precision: str, data_parallel_size: int) -> StagePlan:
    return make_plan(
        model={"mamba_head_dim": 5, "share_embeddings_and_output_weights": True},
        layout={
            "pipeline_model_parallel_size": 2,
            "data_parallel_size": data_parallel_size,
            "use_distributed_optimizer": True,
        },
        precision=precision,
    )


class Saved(NamedTuple):
    """What a rank puts into a save of either format."""

    gap: int  # elements between the first two buckets that are no parameter's
    names: list[str]  # fully_reshardable: of every tensor
    wrong: list[str]  # of those that hold another parameter's state
    slices: list[tuple[str, int, int, int]]  # dp_reshardable: name, start, end, and the declared size of the whole


def saved_of_rank(plans: list[StagePlan]) -> list[Saved]:
    sizes = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 2}
    with process_groups(Launch.from_environment(), **sizes) as groups:
        return [saved_by(plan, groups) for plan in plans]


def saved_by(plan: StagePlan, groups: Any) -> Saved:
    model = wrap_model(plan, build_model(plan, groups), groups)
    optimizer = make_optimizer(plan, model, groups)
    fill_states(optimizer)
    (inner,) = optimizer.chained_optimizers
    for main, state in inner.optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key].copy_(FACTORS[key] * main.detach())
    (buffer,) = model.buffers
    whole, names, wrong = state_to_save(model, optimizer, groups, "fully_reshardable"), [], []
    for number, parameter in enumerate(buffer.param_index_map):
        for key, tensor in whole[number].items():
            names.append(tensor.key)
            if not torch.equal(tensor.data, FACTORS[key] * parameter.detach().float()):
                wrong.append(tensor.key)
    slices = [
        (tensor.key, tensor.global_offset[0], tensor.global_offset[0] + tensor.data.numel(), tensor.global_shape[0])
        for tensor in nested_values(state_to_save(model, optimizer, groups, "dp_reshardable"))
        if isinstance(tensor, ShardedTensor)
    ]
    first_end = max(end for _, end, bucket in buffer.param_index_map.values() if bucket == 0)
    return Saved(buffer.bucket_indices[1][0] - first_end, names, wrong, slices)


def state_to_save(model: Any, optimizer: Any, groups: Any, optimizer_format: str) -> Any:
    metadata = {"dp_cp_group": groups.dp_cp, "distrib_optim_sharding_type": optimizer_format}
    weights = model.module.sharded_state_dict(metadata=metadata)
    return optimizer.sharded_state_dict(weights, metadata=metadata)["param_state"]


@pytest.mark.parametrize("data_parallel_size", [1, 2])
def test_a_tied_pipeline_saves_each_parameter_with_its_own_state(data_parallel_size: int) -> None:
    plans = [tied_plan(precision, data_parallel_size) for precision in ("fp32", "bf16")]
    for ranks in zip(*run_distributed(saved_of_rank, 2 * data_parallel_size, plans), strict=True):
        assert ranks[0].gap >= 64, "no padding behind the first bucket, so nothing to see"
        for rank in ranks:
            assert rank.wrong == []
            assert len([name for name in rank.names if name.endswith(EMBEDDING)]) == 3  # weight, two moments
        assert_whole(sorted(piece for rank in ranks for piece in rank.slices))


def assert_whole(slices: list[tuple[str, int, int, int]]) -> None:
    """The slices of every tensor follow one another from its start to its declared end."""
    sizes = {name: size for name, _, _, size in slices}
    assert len(sizes) == 2 * 2 * 3  # stages, buckets, states
    for name, size in sizes.items():
        pieces = [(start, stop) for other, start, stop, _ in slices if other == name]
        assert [start for start, _ in pieces] == [0, *(stop for _, stop in pieces[:-1])], name
        assert pieces[-1][1] == size, name
