"""How many bytes a rank holds while it trains, by pipeline stage.

Parameters, gradients and optimizer states are exact; a distributed test compares them with real ranks.
Activations stand in activations.py.

Source: megatron-core 0.19, `distributed/param_and_grad_buffer.py`, `optimizer/param_layout.py`,
`optimizer/distrib_optimizer.py`, `optimizer/optimizer.py`, with this project's settings: gradients
summed in fp32, no overlapped reduction, hence one bucket (a tied embedding on a pipeline has its own).

    parameters   2 or 4 bytes; bf16 holds A_log and D in bf16 too (core's Float16Module)
    gradients    4 bytes
    optimizer    two moments of 4 bytes, in bf16 a master weight of 4 more
    fp8          2 bytes for each weight whose product is in 8 bits: Transformer Engine keeps it as the forward pass
                 reads it and turned for the backward pass, over all microbatches of a step (`_fp8_workspaces`)

The distributed optimizer lays parameters into one buffer, backwards, each at a multiple of 64
elements; the buffer ends at a multiple of lcm(data-parallel ranks, 128) and is cut into equal shards.
The step counters of torch's AdamW, 4 bytes a parameter tensor, are left out: fused optimizers have none.
"""

from __future__ import annotations

import functools
import math

from megatron_ext.plan.activations import activation_bytes
from megatron_ext.plan.rollout import rollout_bytes, slots_in_use
from megatron_ext.plan.sizes import ParameterSize, layer_parameter_sizes, padded_vocab_size
from megatron_ext.plan.stage_plan import BatchPlan, ExecutionPlan, LayoutPlan
from megatron_ext.plan.stage_plan import RankMemory as RankMemory  # re-exported beside the function that makes it
from megatron_ext.recipe.fp8_schema import Fp8Recipe
from megatron_ext.recipe.layer_pattern import parse_pattern
from megatron_ext.recipe.schema import ModelRecipe, RlRecipe

FP8_WEIGHTS = frozenset({"in_proj", "out_proj", "linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"})
"""Parameters of a layer whose products are in fp8 where a recipe asks for it: all of them are split over ranks."""

_START_MULTIPLE = 64
_END_MULTIPLE = 128


def memory_per_rank(
    recipe_model: ModelRecipe,
    layout: LayoutPlan,
    batch: BatchPlan,
    execution: ExecutionPlan,
    *,
    precision: str,
    rl: RlRecipe | None = None,
    fp8: Fp8Recipe | None = None,
    on_gpu: bool = False,
) -> tuple[RankMemory, ...]:
    """Counts the bytes of a rank of every pipeline stage.

    Args:
        recipe_model: A checked model.
        layout: Legal for the model.
        batch: Gives sequence length, micro-batch size and number of microbatches.
        execution: Gives what is computed again instead of kept.
        precision: `fp32` or `bf16`.
        rl: Of an rl stage: gives the caches of its slots, and whether a reference is kept.
        fp8: Which products are in 8 bits; None: none. Activations are counted as in bf16, which keeps no less.
        on_gpu: Backend `local` with the kernels that it takes on a GPU in bf16, which keep less.

    Returns:
        One entry for each pipeline stage, first stage first.
    """
    return tuple(
        RankMemory(
            **_state_bytes(recipe_model, layout, stage, precision),
            **activation_bytes(recipe_model, layout, batch, execution, stage=stage, precision=precision, on_gpu=on_gpu),
            **_rl_bytes(recipe_model, layout, batch, rl, stage=stage, precision=precision),
            fp8_weights=0 if fp8 is None else 2 * _fp8_weights(recipe_model, layout, stage, fp8),
        )
        for stage in range(layout.pipeline_model_parallel_size)
    )


def _rl_bytes(
    model: ModelRecipe, layout: LayoutPlan, batch: BatchPlan, rl: RlRecipe | None, *, stage: int, precision: str
) -> dict[str, int]:
    """What sampling and the reference hold beside what training does."""
    if rl is None:
        return {}
    numel = sum(size.numel for size in stage_parameter_sizes(model, layout, stage))
    width = 2 if precision == "bf16" else 4
    reference = width * numel if rl.kl.coefficient else 0
    if rl.engine == "vllm":
        return {"reference": reference}  # the servers have the caches
    longest = rl.max_prompt_tokens + rl.max_new_tokens
    slots = slots_in_use(rl, batch)
    caches = rollout_bytes(model, layout, num_slots=slots, tokens_per_slot=longest, precision=precision)
    return {"reference": reference, "caches": caches.total}


def _fp8_weights(model: ModelRecipe, layout: LayoutPlan, stage: int, fp8: Fp8Recipe) -> int:
    """Weights of a rank whose products are in fp8: those of linear layers, but for the layers at both ends."""
    segments = parse_pattern(layout.hybrid_layer_pattern).segments
    first, last = fp8.bf16_edge_layers, sum(map(len, segments)) - fp8.bf16_edge_layers
    before = sum(map(len, segments[:stage]))
    whole = sum(
        size.numel
        for number, symbol in enumerate(segments[stage], start=before)
        if first <= number < last
        for size in layer_parameter_sizes(model, symbol)
        if size.name in FP8_WEIGHTS
    )
    return whole // layout.tensor_model_parallel_size


def stage_parameter_sizes(model: ModelRecipe, layout: LayoutPlan, stage: int) -> tuple[ParameterSize, ...]:
    """The parameters of one rank of a pipeline stage, in the order in which the model holds them."""
    rows, last = padded_vocab_size(model.vocab_size), layout.pipeline_model_parallel_size - 1
    segments = parse_pattern(layout.hybrid_layer_pattern).segments
    sizes = [ParameterSize("embedding", rows * model.hidden_size, True)] if stage == 0 else []
    for symbol in segments[stage]:
        sizes += layer_parameter_sizes(model, symbol)
    if stage == last:
        sizes.append(ParameterSize("final_norm", model.hidden_size, False))
        if last > 0 or not model.share_embeddings_and_output_weights:  # a tied layer on a pipeline holds a copy
            sizes.append(ParameterSize("output_layer", rows * model.hidden_size, True))
    ranks = layout.tensor_model_parallel_size
    return tuple(size._replace(numel=size.numel // ranks) if size.is_split else size for size in sizes)


def buffer_sizes(model: ModelRecipe, layout: LayoutPlan, stage: int) -> tuple[int, int, int]:
    """The distributed optimizer's buffer on one rank.

    Returns:
        Its elements, padding included; those without the padding at the buffer's end, which are what a save
        gathers; and the parameter elements in the fullest shard.
    """
    shards = layout.data_parallel_size * layout.context_parallel_size
    owned = [0] * shards
    total = unpadded = 0
    for bucket in _buckets(model, layout, stage):
        ranges = []
        end = 0
        for numel in bucket:
            start = _round_up(end, _START_MULTIPLE)
            end = start + numel
            ranges.append((start, end))
        unpadded = total + end
        padded = _round_up(end, math.lcm(shards, _END_MULTIPLE))
        total += padded
        width = padded // shards
        for rank in range(shards):
            low, high = rank * width, (rank + 1) * width
            owned[rank] += sum(max(0, min(high, stop) - max(low, start)) for start, stop in ranges)
    return total, unpadded, max(owned)


def _buckets(model: ModelRecipe, layout: LayoutPlan, stage: int) -> list[list[int]]:
    """Elements of the parameters, backwards; an embedding that two pipeline stages share is alone in its bucket."""
    is_shared = model.share_embeddings_and_output_weights and layout.pipeline_model_parallel_size > 1
    buckets: list[list[int]] = [[]]
    for size in reversed(stage_parameter_sizes(model, layout, stage)):
        if is_shared and size.name in ("embedding", "output_layer"):
            buckets += [[size.numel], []]
        else:
            buckets[-1].append(size.numel)
    return [bucket for bucket in buckets if bucket]


@functools.cache  # --suggest asks for many micro-batches of one layout
def _state_bytes(model: ModelRecipe, layout: LayoutPlan, stage: int, precision: str) -> dict[str, int]:
    buffer = owned = sum(size.numel for size in stage_parameter_sizes(model, layout, stage))
    if layout.use_distributed_optimizer:
        buffer, _, owned = buffer_sizes(model, layout, stage)
    parameter, state = (2, 12) if precision == "bf16" else (4, 8)
    return {"parameters": parameter * buffer, "gradients": 4 * buffer, "optimizer": state * owned}


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
