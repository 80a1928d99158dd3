"""Megatron-Core's optimizer, set up from a plan, with the traps of torch's AdamW closed.

Where neither Transformer Engine nor apex is installed, core drives `torch.optim.AdamW`, which keeps
one step counter for each parameter. Measured on megatron-core 0.19.2:

- a fresh distributed optimizer cannot describe its state for loading (`distrib_optimizer.py:839`),
  so the states are filled first;
- loading hands ONE counter tensor to all parameters (`distrib_optimizer.py:1032`). AdamW counts it up
  once for each parameter, and the resumed run silently diverges: each parameter gets its own again;
- loading `fully_reshardable` state looks for a saved `step` that was never written (`:1223`), so the
  counters step aside while it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def fill_states(optimizer: MegatronOptimizer) -> None:
    """Gives a fresh AdamW the states that loading expects to find."""
    for adam, parameter in _adam_parameters(optimizer):
        state = adam.state[parameter]
        if "exp_avg" not in state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter.data)
            state["exp_avg_sq"] = torch.zeros_like(parameter.data)


@torch.no_grad()
def load_optimizer_state(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Loads what `sharded_state_dict` saved, and gives every parameter a step counter of its own.

    Args:
        optimizer: With states filled.
        state: The loaded state of the only optimizer in the chain.
    """
    (inner,) = optimizer.chained_optimizers
    sharding = state.pop("param_state_sharding_type", None)
    parameter_state = state.pop("param_state", None)
    inner.load_state_dict(state)
    steps = {parameter: adam.state[parameter].pop("step") for adam, parameter in _adam_parameters(optimizer)}
    if parameter_state is not None:
        assert sharding == "fully_reshardable", f"unknown sharding of the optimizer state: {sharding!r}"
        inner.load_parameter_state_from_fully_reshardable(parameter_state)
    for adam, parameter in _adam_parameters(optimizer):
        adam.state[parameter]["step"] = steps[parameter].detach().clone()


def _adam_parameters(optimizer: MegatronOptimizer) -> Iterator[tuple[torch.optim.Optimizer, torch.Tensor]]:
    for inner in optimizer.chained_optimizers:
        adam = inner.optimizer
        if isinstance(adam, torch.optim.AdamW):  # the fused Adams count steps once for each group, and need no help
            for group in adam.param_groups:
                for parameter in group["params"]:
                    yield adam, parameter
