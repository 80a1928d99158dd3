"""The same weights in every tensor- and pipeline-parallel layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_ext.models.build import build_model
from megatron_ext.models.initialise import global_parameters
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from tests.support.distributed import run_distributed
from tests.support.plans import make_plan

Shard = tuple[Tensor, int | None, list[int]]


def build_rank(tensor_parallel: int, pipeline_parallel: int, model: dict[str, object]) -> dict[str, Shard]:
    """This rank's parameters by global name: values, the dimension that is split, the sizes of packed parts."""
    sizes = {
        "tensor_model_parallel_size": tensor_parallel,
        "pipeline_model_parallel_size": pipeline_parallel,
    }
    plan = make_plan(model=model, layout=sizes)
    with process_groups(Launch.from_environment(), **sizes) as groups:
        shards = {}
        for name, parameter in global_parameters(build_model(plan, groups)):
            dim = parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None
            parts = getattr(parameter, "partition_sizes", [parameter.shape[dim]]) if dim is not None else []
            shards[name] = (parameter.detach(), dim, list(parts))
        return shards


def join(shards: list[Shard]) -> Tensor:
    """Puts the shards of one parameter back together, part by part."""
    _, dim, sizes = shards[0]
    if dim is None:
        assert all(torch.equal(value, shards[0][0]) for value, _, _ in shards)
        return shards[0][0]
    by_rank = [value.split(sizes, dim=dim) for value, _, _ in shards]
    return torch.cat([piece for part in zip(*by_rank, strict=True) for piece in part], dim=dim)


def gather(ranks: list[dict[str, Shard]], tensor_parallel: int) -> dict[str, Tensor]:
    """The whole model from the shards of all ranks; ranks of one stage are neighbours."""
    whole: dict[str, Tensor] = {}
    for first in range(0, len(ranks), tensor_parallel):
        stage = ranks[first : first + tensor_parallel]
        for name in stage[0]:
            joined = join([rank[name] for rank in stage])
            assert name not in whole or torch.equal(whole[name], joined), f"{name}: copies differ"
            whole[name] = joined
    return whole


@pytest.mark.parametrize(
    ("tensor_parallel", "pipeline_parallel", "model"),
    [
        (2, 1, {}),
        (1, 2, {}),
        (2, 2, {}),
        (2, 2, {"share_embeddings_and_output_weights": True}),
    ],
    ids=["tp2", "pp2", "tp2-pp2", "tp2-pp2-tied"],
)
def test_weights_do_not_depend_on_the_layout(
    tensor_parallel: int, pipeline_parallel: int, model: dict[str, object]
) -> None:
    alone = {name: value for name, (value, _, _) in run_distributed(build_rank, 1, 1, 1, model)[0].items()}
    ranks = run_distributed(build_rank, tensor_parallel * pipeline_parallel, tensor_parallel, pipeline_parallel, model)
    whole = gather(ranks, tensor_parallel)
    assert whole.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(whole[name], value), name


def test_both_copies_of_tied_embeddings_are_equal() -> None:
    first, last = run_distributed(build_rank, 2, 1, 2, {"share_embeddings_and_output_weights": True})
    name = "embedding.word_embeddings.weight"
    assert torch.equal(first[name][0], last[name][0])
    assert float(first[name][0].std()) == pytest.approx(0.02, rel=0.1)


def fail_on_rank_one() -> None:
    if Launch.from_environment().rank == 1:
        raise ValueError("rank one has an error")


def test_an_error_on_one_rank_reaches_the_test() -> None:
    with pytest.raises(Exception, match="rank one has an error"):
        run_distributed(fail_on_rank_one, 2)
