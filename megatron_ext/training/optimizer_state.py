"""The optimizer's state on its way to disk and back, in any layout, with the traps of torch's AdamW closed.

What is saved: the main weights and two moments of every parameter, under the parameter's name, and the
number of updates (`state.json`). Learning rate, weight decay and the rest of the parameter groups come
from the plan, not from a checkpoint, so groups need not be matched across layouts.

| `optimizer_format` | written | loads in |
|---|---|---|
| `fully_reshardable` | every data-parallel rank gathers the whole state of its model part | any layout |
| `dp_reshardable` | each rank its own slice, nothing is gathered | the layout that wrote it |

Without the distributed optimizer there is nothing to gather, and the state is always fully reshardable.

Where neither Transformer Engine nor apex is installed, core drives `torch.optim.AdamW`, which keeps
one step counter for each parameter. Measured on megatron-core 0.19.2:

- a fresh distributed optimizer cannot describe its state for loading (`distrib_optimizer.py:839`),
  so the states are filled first;
- loading hands ONE counter tensor to all parameters (`distrib_optimizer.py:1032`). AdamW counts it up
  once for each parameter, and the resumed run silently diverges;
- loading `fully_reshardable` state looks for a saved `step` that was never written (`:1223`);
- `dp_reshardable` leaves the fresh counter, 0, in place (`:1942` keeps it out of the checkpoint).

So the counters step aside while core loads, and each parameter gets its own from the number of updates.

The fused Adams of Transformer Engine and apex keep one counter in each parameter group. The first `step()`
makes it, so a fresh optimizer has none: without ours a resumed run would correct the bias of its moments as
in the first update. A counter among the moments is what Transformer Engine's `load_state_dict` stops at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.optimizer import MegatronOptimizer

OptimizerFormat = Literal["fully_reshardable", "dp_reshardable"]
_SHARDED_WEIGHT, _PLAIN_WEIGHT = "optimizer.state.param.", "optimizer.state.fp32_param."


def fill_states(optimizer: MegatronOptimizer) -> None:
    """Gives a fresh Adam the states that saving before the first update, and loading, expect to find."""
    for adam, parameter in _adam_parameters(optimizer):
        state = adam.state[parameter]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter.data)
            state["exp_avg_sq"] = torch.zeros_like(parameter.data)
            if _counts_by_parameter(adam):
                state["step"] = torch.tensor(0.0)


def count_updates(optimizer: MegatronOptimizer) -> int:
    """How many updates Adam has made, by its own counters."""
    (inner,) = optimizer.chained_optimizers
    adam = inner.optimizer
    # A group without parameters on this rank is not counted up.
    counters = [*adam.state.values(), *(group for group in adam.param_groups if group["params"])]
    counts = {int(counter["step"]) for counter in counters if "step" in counter}
    assert len(counts) <= 1, f"parameters with different numbers of updates: {sorted(counts)}"
    return max(counts, default=0)


def ask_as_written(wanted: dict[str, Any], *, by_distributed: bool, for_distributed: bool, precision: str) -> None:
    """Renames the main weights in `wanted` to what the other kind of optimizer called them.

    Core 0.19.2 calls them `param` with the distributed optimizer and `fp32_param` without; in fp32 the
    plain optimizer has none of its own, as the model's weights are the main ones.

    Args:
        wanted: `sharded_state_dict(is_loading=True)` of this run's optimizer; changed in place.
        by_distributed: Whether the distributed optimizer wrote the checkpoint.
        for_distributed: Whether this run has it.
        precision: fp32 or bf16.
    """
    if by_distributed == for_distributed:
        return
    there, here = (_SHARDED_WEIGHT, _PLAIN_WEIGHT) if by_distributed else (_PLAIN_WEIGHT, _SHARDED_WEIGHT)
    if for_distributed and precision == "fp32":
        there = ""
    for sharded in nested_values(wanted):
        key = getattr(sharded, "key", "")
        if key.startswith(here):
            sharded.key = there + key.removeprefix(here)


@torch.no_grad()
def load_optimizer_state(
    optimizer: MegatronOptimizer, state: dict[str, Any], *, updates: int, written_as: OptimizerFormat
) -> None:
    """Puts loaded main weights and moments into place and sets every counter to `updates`.

    Args:
        optimizer: With states filled.
        state: What was loaded for its `sharded_state_dict`.
        updates: Number of updates that Adam had made.
        written_as: Format of the checkpoint.
    """
    (inner,) = optimizer.chained_optimizers
    adam = inner.optimizer
    for _, parameter in _adam_parameters(optimizer):
        adam.state[parameter].pop("step", None)
    if "param_state" in state:
        getattr(inner, f"load_parameter_state_from_{written_as}")(state["param_state"])
    else:
        is_nested = "fp32_from_fp16_params" in state
        plain = state["optimizer"] if is_nested else state
        # Core would pair saved groups with ours by their settings; ours are the plan's already.
        plain = {"state": plain["state"], "param_groups": adam.state_dict()["param_groups"]}
        plain["state"].pop("common_step", None)
        if _counts_by_parameter(adam):
            for moments in plain["state"].values():
                moments["step"] = torch.tensor(float(updates))
        inner.load_state_dict(dict(state, optimizer=plain) if is_nested else plain)
    _set_counters(optimizer, updates)


def _set_counters(optimizer: MegatronOptimizer, updates: int) -> None:
    for adam, parameter in _adam_parameters(optimizer):
        if _counts_by_parameter(adam):
            adam.state[parameter]["step"] = torch.tensor(float(updates))
    for inner in optimizer.chained_optimizers:
        for group in inner.optimizer.param_groups:
            if _counts_by_parameter(inner.optimizer):
                # Core's distributed optimizer leaves a counter here that AdamW neither reads nor counts up.
                group.pop("step", None)
            else:
                group["step"] = updates


def _counts_by_parameter(adam: torch.optim.Optimizer) -> bool:
    """Whether each parameter has a counter, as in torch; the fused Adams count in the group."""
    return isinstance(adam, torch.optim.AdamW)


def _adam_parameters(optimizer: MegatronOptimizer) -> Iterator[tuple[torch.optim.Optimizer, torch.Tensor]]:
    for inner in optimizer.chained_optimizers:
        for group in inner.optimizer.param_groups:
            for parameter in group["params"]:
                yield inner.optimizer, parameter
