# ruff: noqa: E402 (the stand-ins must be there before core is imported)
"""Builds core's stock hybrid spec on the stand-ins of extensions_on_cpu.py, beside ours; run as a program.

    python -m tests.support.stock_spec REPORT.json      what the tests look at
    python -m tests.support.stock_spec --record         writes tests/data/stock_hybrid_keys.json anew

It is a process of its own because core decides at import whether Transformer Engine is there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # core's squared_relu is compiled; a CPU may have no compiler

from tests.support.extensions_on_cpu import install

install()

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_ext.models import kernels
from megatron_ext.models.build import build_model
from megatron_ext.models.conv import causal_conv1d_silu, causal_conv1d_silu_step
from megatron_ext.models.initialise import global_parameters
from megatron_ext.models.ssd import ssd_chunked, ssd_step
from megatron_ext.models.weights import put_weights, sharded_weights
from megatron_ext.runtime.device import device_scope
from tests.support.one_process import logits_of, one_process, random_tokens, strengthen
from tests.support.plans import make_plan

RECORD = Path(__file__).parents[1] / "data" / "stock_hybrid_keys.json"
PATTERN = "M-*"
BACKENDS = ("local", "te")


def keys_at_two_ranks() -> dict[str, dict[str, Any]]:
    """Of each backend, every key of a checkpoint with its whole shape and its cuts over two tensor-parallel ranks."""
    plan = make_plan(model={"hybrid_layer_pattern": PATTERN}, layout={"tensor_model_parallel_size": 2})
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    with device_scope():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, create_gloo_process_groups=False)
        groups = ProcessGroupCollection.use_mpu_process_groups()
        found = {name: keys_of(build_model(plan, groups, backend=name), groups) for name in BACKENDS}
        parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    return found


def keys_of(model: HybridModel, groups: ProcessGroupCollection) -> dict[str, Any]:
    state = sharded_weights(model, groups)
    apply_factories(state)
    tensors = [value for value in nested_values(state) if isinstance(value, ShardedTensor)]
    return {t.key: [list(t.global_shape), list(t.axis_fragmentations)] for t in sorted(tensors, key=lambda t: t.key)}


def compared(groups: ProcessGroupCollection) -> dict[str, Any]:
    """Weights, logits, losses, gradients and checkpoints of the two backends, of one plan."""
    plan = make_plan()
    local, te = (build_model(plan, groups, backend=name) for name in BACKENDS)
    weights = [{key_of(name): p for name, p in global_parameters(model)} for model in (local, te)]
    facts: dict[str, Any] = {
        "same_names": weights[0].keys() == weights[1].keys(),
        "same_weights": all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]),
    }
    strengthen(local), strengthen(te)
    tokens = random_tokens(2, 20)
    facts["logits"] = difference(logits_of(local, tokens), logits_of(te, tokens))
    for model in (local, te):
        positions = torch.arange(19).expand(2, 19)
        model(tokens[:, :-1], positions, None, labels=tokens[:, 1:]).mean().backward()
    facts["gradients"] = max(difference(weights[0][name].grad, weights[1][name].grad) for name in weights[0])
    facts["te_to_local"] = carried_over(te, build_model(make_plan(seed=1), groups, backend="local"), groups)
    facts["local_to_te"] = carried_over(local, build_model(make_plan(seed=1), groups, backend="te"), groups)
    return facts


def key_of(name: str) -> str:
    """A parameter's name in the checkpoint."""
    for ours, theirs in (
        (".input_layernorm.", ".self_attention.linear_qkv.layer_norm_"),
        (".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_"),
    ):
        name = name.replace(ours, theirs)
    parts = name.split(".")
    return name.replace(".norm.", ".mixer.in_proj.layer_norm_") if parts[3:4] == ["norm"] else name


def carried_over(source: HybridModel, target: HybridModel, groups: ProcessGroupCollection) -> float:
    """How far the logits of `target` are from the source's after a checkpoint, extra states and all."""
    with TemporaryDirectory() as folder:
        whole = source.sharded_state_dict(metadata={"dp_cp_group": groups.dp_cp})
        dist_checkpointing.save({"model": whole}, folder)
        put_weights(target, dist_checkpointing.load({"model": sharded_weights(target, groups)}, folder)["model"])
    tokens = random_tokens(2, 20)
    return difference(logits_of(source, tokens), logits_of(target, tokens))


def kernels_compared() -> dict[str, float]:
    """The calls of models/kernels.py against plain torch: values and gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    x, dt, B, C = draw(2, 11, 4, 8), draw(2, 11, 4).sigmoid(), draw(2, 11, 2, 5), draw(2, 11, 2, 5)
    A, D, state = -draw(4).exp(), draw(4), draw(2, 4, 8, 5)
    ssds = [
        torch.cat([t.flatten() for t in function(x, dt, A, B, C, D=D, initial_state=state)])
        for function in (ssd_chunked, kernels.triton_ssd)
    ]
    inputs = [x, dt, A, B, C, D, state]
    xs, weight, bias = draw(2, 11, 12), draw(12, 1, 4), draw(12)
    convs = [function(xs, weight, bias) for function in (causal_conv1d_silu, kernels.fused_conv)]
    with torch.no_grad():
        steps = [
            torch.cat([t.flatten() for t in function(state.clone(), x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D)])
            for function in (ssd_step, kernels.triton_ssd_step)
        ]
        window = torch.randn(2, 12, 4, generator=generator)
        conv_steps = [
            function(window.clone(), xs[:, 0], weight, bias)
            for function in (causal_conv1d_silu_step, kernels.fused_conv_step)
        ]
    return {
        "ssd": difference(*ssds),
        "ssd_gradients": gradient_difference(ssds, inputs),
        "conv": difference(*convs),
        "conv_gradients": gradient_difference(convs, [xs, weight, bias]),
        "ssd_step": difference(*steps),
        "conv_step": difference(*conv_steps),
    }


def gradient_difference(outputs: list[Tensor], inputs: list[Tensor]) -> float:
    weights = torch.linspace(-1, 1, outputs[0].numel()).view_as(outputs[0])
    ours, theirs = (torch.autograd.grad((out * weights).sum(), inputs, retain_graph=True) for out in outputs)
    return max(difference(a, b) / max(1.0, float(b.abs().max())) for a, b in zip(ours, theirs, strict=True))


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def main() -> None:
    keys = keys_at_two_ranks()
    if sys.argv[1] == "--record":
        RECORD.write_text(json.dumps(keys["te"], indent=1) + "\n")
        return
    with one_process() as groups:
        facts = compared(groups)
    Path(sys.argv[1]).write_text(json.dumps({"keys": keys, "kernels": kernels_compared(), **facts}))


if __name__ == "__main__":
    main()
