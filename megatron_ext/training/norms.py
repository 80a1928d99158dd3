"""Norms of gradients and weights by kind of layer: where a run that goes wrong goes wrong first.

The kinds are those of the plan's parameter count; a layer's RMSNorm belongs to its layer. Gradients are those
of the whole global batch before clipping, weights those before the update, in the precision of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared

from megatron_ext.runtime.device import device

_KIND_OF_PART = {
    "embedding": "embedding",
    "mixer": "mamba",
    "norm": "mamba",
    "self_attention": "attention",
    "input_layernorm": "attention",
    "mlp": "mlp",
    "pre_mlp_layernorm": "mlp",
    "final_norm": "final_norm",
    "output_layer": "output",
}
"""The part of a model, in Megatron-Core's names (both backends), and the kind of layer it is counted to."""

_KINDS = tuple(dict.fromkeys(_KIND_OF_PART.values()))


@torch.no_grad()
def norms_by_kind(
    model: Any, optimizer: MegatronOptimizer, groups: ProcessGroupCollection
) -> dict[str, dict[str, float]]:
    """L2 norms over all ranks, the same on each.

    All ranks must call this, after `prepare_grads()` and before the update.

    Args:
        model: In `DistributedDataParallel`; its gradients are reduced and divided by the trained tokens.
        optimizer: Knows which part of a gradient this rank holds.
        groups: Process groups.

    Returns:
        `grad_norm_by_kind` and `weight_norm_by_kind`, each by kind of layer that the model has. The root of the
        summed squares of the first is the step's gradient norm.
    """
    (inner,) = optimizer.chained_optimizers
    squares = torch.zeros(2, len(_KINDS), dtype=torch.float64)
    for name, parameter in model.module.named_parameters():
        if param_is_not_shared(parameter) and param_is_not_tensor_parallel_duplicate(parameter, groups.tp):
            kind = _KINDS.index(_kind_of(name))
            for row, tensor in enumerate(_held(inner, parameter)):
                squares[row, kind] += torch.linalg.vector_norm(tensor, dtype=torch.float64).item() ** 2
    squares = squares.to(device())
    # The ranks that core's own gradient norm is summed over: those that hold different parts of the model,
    # with the distributed optimizer all.
    dist.all_reduce(squares, group=inner.get_grad_stats_parallel_group())
    gradients, weights = squares.sqrt().tolist()
    present = [(kind, place) for place, kind in enumerate(_KINDS) if weights[place]]
    return {
        "grad_norm_by_kind": {kind: gradients[place] for kind, place in present},
        "weight_norm_by_kind": {kind: weights[place] for kind, place in present},
    }


def _held(inner: Any, parameter: torch.nn.Parameter) -> Iterator[torch.Tensor]:
    """Gradient and weight of a parameter, or the part whose gradient the distributed optimizer left here."""
    both = (parameter.main_grad.view(-1), parameter.data.view(-1))  # type: ignore[attr-defined]
    if not isinstance(inner, DistributedOptimizer):
        yield from both
    elif parameter in inner.model_param_gbuf_map:
        part = inner._get_model_param_range_map(parameter)["param"]
        yield from (tensor[part.start : part.end] for tensor in both)


def _kind_of(name: str) -> str:
    parts = name.removeprefix("module.").split(".")
    if parts[0] == "decoder":
        parts = parts[3:] if parts[1] == "layers" else parts[1:]
    return _KIND_OF_PART[parts[0]]
