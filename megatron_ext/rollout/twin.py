"""The local backend's layers over the parameters of a model with Transformer Engine's.

Transformer Engine's layers keep a length for each row of a cache only inside core's dynamic engine. Ours decode
through `RolloutCache`, and both backends have the same parameters: Transformer Engine's only hold each input norm's
weight in the projection behind it. So the twin is made without storage, and takes the very Parameter objects of the
model. Whatever gives a parameter other values or another place (an optimizer's step, half precision, the buffers of
data parallelism) changes the twin with it, for core does all of that through `Parameter.data`.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron.core.models.hybrid.hybrid_model import HybridModel
from torch import nn

from megatron_ext.models.build import bare_model
from megatron_ext.models.stack import LocalHybridStack
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.device import device_scope, no_storage


def decodable(model: HybridModel, plan: StagePlan) -> HybridModel:
    """The model itself on the local backend, else its twin, which shares every parameter and decodes from caches.

    Args:
        model: The whole model, not wrapped: one pipeline stage, any number of tensor-parallel ranks.
        plan: The plan that built it.
    """
    if isinstance(model.decoder, LocalHybridStack):
        return model
    with device_scope(), no_storage():
        twin = bare_model(plan, model.pg_collection, backend="local")
    theirs, shared = dict(model.named_parameters()), set()
    for (name, mine), key in zip(list(twin.named_parameters()), _names_in_te(twin), strict=True):
        assert theirs[key].shape == mine.shape, f"{name}: {tuple(mine.shape)}, {key}: {tuple(theirs[key].shape)}"
        owner, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(owner), leaf, theirs[key])
        shared.add(key)
    assert shared == theirs.keys(), f"parameters that the twin lacks: {sorted(theirs.keys() - shared)}"
    if model.position_embedding_type == "rope":
        twin.rotary_pos_emb = model.rotary_pos_emb
    return twin.train(model.training)


def _names_in_te(twin: nn.Module) -> Iterator[str]:
    """Names of the twin's parameters in the stock spec, in their order; checkpoints go by the same map."""
    for name, _ in twin.named_parameters():
        if not name.startswith("decoder.layers."):
            yield name
            continue
        number, rest = name.removeprefix("decoder.layers.").split(".", 1)
        renamed = twin.decoder.layers[int(number)].submodules_config.sharded_state_dict_keys_map
        ours = next((prefix for prefix in renamed if rest.startswith(prefix)), None)
        yield name if ours is None else f"decoder.layers.{number}.{renamed[ours]}{rest.removeprefix(ours)}"
