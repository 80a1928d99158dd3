"""Bytes that a rank sends to others in a step, and the seconds that they take.

With t, c, d, p ranks of tensor, context, data and pipeline parallelism, n tokens of a microbatch on a rank, h hidden:

    tensor    a layer, a microbatch: 5 (t-1)/t 2 n h with sequence parallelism: gather and scatter forward, the same
              backward, and the input gathered again for the weights' gradients; without 4 (t-1)/t 2 n h: all-reduces
    context   an attention layer: 3 (c-1) n 2 k 2/t: keys and values (k channels each) go round forward, they and their
              gradients backward. A Mamba-2 layer: 2 (c-1)/c n (z + w) 2/t: in_proj's output (z) and the scan's (w)
              change from parts of rows to parts of heads and back, forward and backward
    pipeline  a boundary, a microbatch: 2 n h, and as many backward; over t with sequence parallelism
    data      a step, N parameters: (4 + 2) (d-1)/d N with the distributed optimizer (fp32 gradients are scattered,
              bf16 parameters gathered), 8 (d-1)/d N without (fp32 gradients are reduced); d counts context ranks too

Numbers are 2 bytes wide, as bf16 is. Embedding and output layer count as 2 and 3 more of the 5. Nothing is taken to
run beside computation, whatever `parallel.overlap_*` and `tp_comm_overlap` say: no overlap has been measured.

Source: Korthikanti et al., arXiv 2205.05198 section 4.2 (sequence parallelism moves what tensor parallelism does);
megatron-core 0.19, `tensor_parallel/layers.py` (the second gather), `ssm/mamba_context_parallel.py`,
`distributed/param_and_grad_buffer.py`; Transformer Engine 2, `attention/dot_product_attention/context_parallel.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from megatron_ext.plan.hardware import Gpu, link
from megatron_ext.plan.sizes import mamba_inner_size
from megatron_ext.plan.stage_plan import LayoutPlan
from megatron_ext.recipe.layer_pattern import ATTENTION, MAMBA
from megatron_ext.recipe.schema import ModelRecipe

_WIDTH = 2


class Traffic(NamedTuple):
    """Seconds of a microbatch on a rank of one pipeline stage."""

    tensor: float
    context: float
    pipeline: float


def microbatch_traffic(
    model: ModelRecipe, layout: LayoutPlan, gpu: Gpu, *, symbols: str, stage: int, tokens: int
) -> Traffic:
    """What a pipeline stage of these layers sends in one microbatch of `tokens` on a rank."""
    tensor, context = layout.tensor_model_parallel_size, layout.context_parallel_size
    stages = layout.pipeline_model_parallel_size
    ends = 2 * (stage == 0) + 3 * (stage == stages - 1)
    passes = 5 * len(symbols) + ends if layout.sequence_parallel else 4 * len(symbols) + ends
    sent = passes * (tensor - 1) / tensor * tokens * model.hidden_size * _WIDTH
    boundaries = (stage > 0) + (stage < stages - 1)
    crossed = 2 * boundaries * tokens * model.hidden_size * _WIDTH / (tensor if layout.sequence_parallel else 1)
    return Traffic(
        tensor=sent / link(gpu, size=tensor, stride=1),
        context=context_bytes(model, layout, symbols=symbols, tokens=tokens) / link(gpu, size=context, stride=tensor),
        pipeline=crossed / link(gpu, size=stages, stride=layout.world_size // stages),
    )


def context_bytes(model: ModelRecipe, layout: LayoutPlan, *, symbols: str, tokens: int) -> float:
    """Of the layers of a pipeline stage, in one microbatch of `tokens` on a rank."""
    tensor, context = layout.tensor_model_parallel_size, layout.context_parallel_size
    keys = 2 * model.num_query_groups * model.kv_channels
    inner = mamba_inner_size(model)
    projected = 2 * inner + 2 * model.mamba_num_groups * model.mamba_state_dim + model.mamba_num_heads
    attention = symbols.count(ATTENTION) * 3 * (context - 1) * keys
    mamba = symbols.count(MAMBA) * 2 * (context - 1) / context * (projected + inner)
    return (attention + mamba) * tokens * _WIDTH / tensor


def data_bytes(layout: LayoutPlan, *, numel: int) -> float:
    """Gradients and parameters of `numel` parameters of a rank, in one step."""
    ranks = layout.data_parallel_size * layout.context_parallel_size
    return (6 if layout.use_distributed_optimizer else 8) * (ranks - 1) / ranks * numel


def data_seconds(layout: LayoutPlan, gpu: Gpu, *, numel: int) -> float:
    """The same as time: data-parallel ranks lie one tensor-parallel group apart."""
    ranks = layout.data_parallel_size * layout.context_parallel_size
    return data_bytes(layout, numel=numel) / link(gpu, size=ranks, stride=layout.tensor_model_parallel_size)
