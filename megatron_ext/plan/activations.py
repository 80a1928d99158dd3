"""What the forward pass keeps for the backward pass, in bytes of one rank.

`local` is what this project's layers save (`models/`), as `saved_tensors_hooks` sees it; a parity test
holds them together. `te` follows what Transformer Engine's and mamba-ssm's autograd functions save: an
estimate, not yet compared with a measurement. Temporary buffers inside a kernel are not counted.

Kept bytes of one layer, for T tokens of a microbatch on a rank (e bytes a number; h hidden; of this
rank: w Mamba channels, H Mamba heads, g groups, n state width, q chunk; d, k query and key/value
channels, a query heads; f inner MLP width). With sequence parallelism the residual stream (h) is divided too.

| part               | local                                                   | te (estimate)       |
|--------------------|---------------------------------------------------------|---------------------|
| every layer        | T (h e + 4) input, mean square                          | T (h e + 4)         |
| norm's output      | T h e                                                   | T h e               |
| Mamba: in_proj     | T (2w + 2gn + H) e                                      | the same            |
| ... convolution    | 4 T (w + 2gn), and T (w + 2gn) e in fp32                | 0, computed again   |
| ... SSD            | 4 T (2gn + 3H + Hq + gq + w), 4 T w in bf16, 4 (T/q + rows) w n | T w e       |
| ... gated norm     | T (2w e + 4g)                                           | T 2w e              |
| attention          | T (d + 2k) e, T (d e + 4a) and copies                   | T (2d + 2k) e + 4 T a |
| MLP                | 2 T f e                                                 | 2 T f e             |
"""

from __future__ import annotations

from typing import NamedTuple

from megatron_ext.plan.sizes import mamba_inner_size, padded_vocab_size
from megatron_ext.plan.stage_plan import BatchPlan, ExecutionPlan, LayoutPlan
from megatron_ext.recipe.layer_pattern import ATTENTION, MAMBA, MLP, parse_pattern
from megatron_ext.recipe.schema import ModelRecipe

SSD_CHUNK = 64
"""Tokens of a chunk of the local backend's SSD (`models/ssd.py`, DEFAULT_CHUNK_SIZE)."""


class Kept(NamedTuple):
    """Bytes that one layer keeps, apart as recomputation tells them apart."""

    input: int
    norm_output: int
    core_attn: int  # kept only without recomputation of the core attention
    mlp: int  # the same of the MLP
    rest: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def activation_bytes(
    model: ModelRecipe,
    layout: LayoutPlan,
    batch: BatchPlan,
    execution: ExecutionPlan,
    *,
    stage: int,
    precision: str,
) -> dict[str, int | bool]:
    """Bytes at the fullest moment of a step on a rank of one pipeline stage.

    A stage holds the activations of `min(stages - stage, microbatches)` microbatches (Source: core's
    1F1B schedule, `pipeline_parallel/schedules.py`), the last one the logits of one. What is computed
    again comes back for one layer (or group of layers) at a time, when the logits are gone.

    Returns:
        `activations`, `logits` and `is_calibrated`, as in `RankMemory`.
    """
    num_stages = layout.pipeline_model_parallel_size
    symbols = parse_pattern(layout.hybrid_layer_pattern).segments[stage]
    kept, again = 0, 0
    layers = [_layer(model, layout, batch, symbol, precision) for symbol in symbols]
    if execution.recompute == "full":
        size = execution.recompute_num_layers
        groups = [layers[start : start + size] for start in range(0, len(layers), size)]
        kept = sum(group[0].input for group in groups)
        again = max(sum(layer.total for layer in group) - group[0].input for group in groups)
    else:
        for layer in layers:
            dropped = _dropped(layer, execution)
            kept += layer.total - dropped
            again = max(again, dropped)
    in_flight = min(num_stages - stage, batch.num_microbatches)
    logits = head_bytes(model, layout, batch, precision) if stage == num_stages - 1 else 0
    return {
        "activations": in_flight * kept + max(0, again - logits),
        "logits": logits,
        "is_calibrated": layout.backend == "local",
    }


def head_bytes(model: ModelRecipe, layout: LayoutPlan, batch: BatchPlan, precision: str) -> int:
    """Final norm, output layer and cross entropy, which keeps the softmax in fp32."""
    tokens = _tokens(layout, batch)
    columns = padded_vocab_size(model.vocab_size) // layout.tensor_model_parallel_size
    return tokens * columns * 4 + 2 * _residual(model, layout, batch, precision)


def _dropped(layer: Kept, execution: ExecutionPlan) -> int:
    """Bytes that selective recomputation does not keep."""
    if execution.recompute != "selective":
        return 0
    parts = {"core_attn": layer.core_attn, "mlp": layer.mlp, "layernorm": layer.norm_output}
    return sum(parts[module] for module in execution.recompute_modules)


def _layer(model: ModelRecipe, layout: LayoutPlan, batch: BatchPlan, symbol: str, precision: str) -> Kept:
    tokens, e = _tokens(layout, batch), 2 if precision == "bf16" else 4
    tensor = layout.tensor_model_parallel_size
    residual = _residual(model, layout, batch, precision)
    if symbol == MLP:
        return Kept(residual, residual, 0, 2 * tokens * model.ffn_hidden_size // tensor * e, 0)
    if symbol == ATTENTION:
        query = model.num_attention_heads * model.kv_channels // tensor
        key_value = 2 * model.num_query_groups * model.kv_channels // tensor
        statistics = 4 * tokens * model.num_attention_heads // tensor
        return Kept(residual, residual, statistics, 0, tokens * (2 * query + key_value) * e)
    assert symbol == MAMBA, symbol
    width, heads = mamba_inner_size(model) // tensor, model.mamba_num_heads // tensor
    groups, state = model.mamba_num_groups // tensor, model.mamba_state_dim
    conv = width + 2 * groups * state
    rest = tokens * (width + conv + heads) * e  # in_proj
    rest += 4 * tokens * conv + (tokens * conv * e if precision == "fp32" else 4 * tokens * width)
    chunk = min(SSD_CHUNK, batch.sequence_length)
    rest += 4 * tokens * (2 * groups * state + 3 * heads + heads * chunk + groups * chunk + width)
    rest += 4 * (tokens // chunk + batch.micro_batch_size) * width * state
    rest += tokens * (2 * width * e + 4 * groups)
    return Kept(residual, residual, 0, 0, rest)


def _tokens(layout: LayoutPlan, batch: BatchPlan) -> int:
    """Tokens of one microbatch on one rank."""
    return batch.micro_batch_size * batch.sequence_length // layout.context_parallel_size


def _residual(model: ModelRecipe, layout: LayoutPlan, batch: BatchPlan, precision: str) -> int:
    """Bytes of one copy of the residual stream."""
    split = layout.tensor_model_parallel_size if layout.sequence_parallel else 1
    return _tokens(layout, batch) * model.hidden_size * (2 if precision == "bf16" else 4) // split
