"""Megatron-Core's optimizer, set up from a plan; optimizer_state.py saves and restores it."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.plan.stage_plan import StagePlan


def has_weight_decay(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter decays: weight matrices and embeddings do, nothing else.

    Norms, biases, `A_log`, `D` and `dt_bias` are vectors. The convolution's weight is not
    (`[channels, 1, kernel]`), so core's own rule, which asks for one dimension, would decay it.

    Args:
        name: Name within the model, such as `decoder.layers.0.mixer.conv1d_weight`.
        parameter: The parameter or a shard of it.
    """
    return parameter.dim() == 2 and "conv1d" not in name


def make_optimizer(plan: StagePlan, model: Any, groups: ProcessGroupCollection) -> MegatronOptimizer:
    """Builds AdamW over the model's gradient buffers.

    All ranks must call this.

    Args:
        plan: Gives the hyperparameters and whether state is sharded over data-parallel ranks.
        model: The model in Megatron-Core's `DistributedDataParallel`.
        groups: Process groups.
    """
    wanted = plan.optimizer
    bf16 = plan.precision == "bf16"
    config = OptimizerConfig(
        optimizer="adam",
        lr=wanted.lr,
        min_lr=wanted.min_lr,
        weight_decay=wanted.weight_decay,
        adam_beta1=wanted.beta1,
        adam_beta2=wanted.beta2,
        adam_eps=wanted.eps,
        clip_grad=wanted.clip_grad,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=plan.layout.use_distributed_optimizer,
    )
    undecayed = ParamKey(
        with_name_predicate=ParamWithNamePredicate(name="undecayed", fn=lambda p, name: not has_weight_decay(name, p))
    )
    optimizer = get_megatron_optimizer(
        config,
        [model],
        config_overrides={undecayed: {"wd_mult": 0.0}},
        use_gloo_process_groups=False,  # core makes them only from its globals; our checkpoints gather over dp itself
        pg_collection=groups,
    )
    for group in optimizer.param_groups:
        # Core leaves this product to its own scheduler; without it every group would decay.
        group["weight_decay"] = wanted.weight_decay * group["wd_mult"]
    return optimizer


def describe_adam(optimizer: MegatronOptimizer) -> str:
    """One line for the log: whose AdamW core drives here."""
    adam = type(optimizer.chained_optimizers[0].optimizer)
    owner = adam.__module__.split(".")[0]
    return f"optimizer: {adam.__name__} of {_OWNERS.get(owner, owner)}"


_OWNERS = {"transformer_engine": "Transformer Engine, fused", "apex": "apex, fused", "torch": "torch"}
"""Core 0.19 takes the first of these that can be imported (`optimizer/__init__.py`); on a CPU torch's always."""


def set_learning_rate(optimizer: MegatronOptimizer, lr: float) -> None:
    """Sets the rate of the next update in every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_and_step(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Clips the prepared gradients by their known global norm and updates the parameters.

    All ranks must call this.

    Args:
        optimizer: Its `prepare_grads()` has run.
        grad_norm: L2 norm over all ranks.
    """
    for inner in optimizer.chained_optimizers:
        if inner.config.clip_grad > 0.0:
            clip_grad_by_total_norm_fp32(inner.get_parameters(), max_norm=inner.config.clip_grad, total_norm=grad_norm)
    updated = optimizer.step_with_ready_grads()
    assert updated, "the optimizer refused an update whose gradient norm is finite"
