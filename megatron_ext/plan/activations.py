"""What the forward pass keeps for the backward pass, in bytes of one rank.

`local`: what this project's layers save (`models/`), as autograd's `saved_tensors_hooks` see it on a CPU; a parity
test holds the two together. `local` on a GPU in half precision: the same layers with mamba-ssm's and causal-conv1d's
kernels (`models/kernels.py`). `te`: what the autograd functions of Transformer Engine 2 (`LayerNormLinear`,
`FusedAttnFunc`) and mamba-ssm 2 (`MambaSplitConv1dScanCombinedFn`) pass to `save_for_backward`. The last two are read
in these packages and held against measured peaks (`measured_points.jsonl`). A layer keeps, for each token of a
microbatch (sizes of this rank):

    its norm            input and output
    Mamba-2, local      in_proj's output; in fp32 the convolution before its SiLU, x, B, C, dt, y; a chunk's
                        decays [heads, q, q] and C B^T [groups, q, q] and state; the gated norm's ends
    Mamba-2, local      in_proj's output, which its gate keeps whole; the convolution's input (a copy) and output; the
      with kernels      scan's output, and a copy where a batch has several rows; fp32 dt before and after its
                        softplus and its sums; the norm's output
    Mamba-2, te         in_proj's output, the scan's output, the norm's ends; the rest is computed again. With context
                        parallelism the first two are all tokens of some heads: as many bytes, but that ranks which
                        share a group have a copy of its B and C each
    attention           linear_qkv's output, queries (a copy where a rank has several groups), output, log-sum-exp
    MLP                 two buffers of the inner width

and the last pipeline stage the fp32 softmax over its part of the vocabulary. Transformer Engine's cross entropy keeps
logits as wide as the parameters instead, which is counted the same: `hybrid_130m` in bf16 took 0.6 % more than that in
all. On a GPU the logits before the softmax are counted with core's cross entropy, because they stand beside it when
memory is fullest: Transformer Engine's took 1.10 GB less of `hybrid_130m`, whose logits are 1.07 GB in bf16. Other
temporary buffers are not counted: those of kernels, of communication, and gradients on their way.
"""

from __future__ import annotations

from typing import NamedTuple

from megatron_ext.plan.sizes import mamba_inner_size, padded_vocab_size
from megatron_ext.plan.stage_plan import BatchPlan, ExecutionPlan, LayoutPlan
from megatron_ext.recipe.layer_pattern import ATTENTION, MAMBA, MLP, parse_pattern
from megatron_ext.recipe.schema import ModelRecipe

SSD_CHUNK = 64
"""Tokens of a chunk of the local backend's SSD (`models/ssd.py`, DEFAULT_CHUNK_SIZE)."""


_WIDTHS = {"fp32": 4, "bf16": 2}


class Kept(NamedTuple):
    """Bytes that one layer keeps, apart as recomputation tells them apart."""

    input: int
    norm_output: int  # with the norm's mean squares
    core_attn: int = 0  # kept only without recomputation of the core attention
    mlp: int = 0  # the same of the MLP
    rest: int = 0

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
    on_gpu: bool = False,
) -> dict[str, int | bool]:
    """Bytes at the fullest moment of a step on a rank of one pipeline stage.

    A stage holds the activations of `min(stages - stage, microbatches)` microbatches (Source: core's
    1F1B schedule, `pipeline_parallel/schedules.py`), the last one the logits of one. What is computed
    again comes back for one layer (or group of layers) at a time, when the logits are gone. `on_gpu`: as
    `memory_per_rank` has it.

    Returns:
        `activations`, `logits` and `is_calibrated`, as in `RankMemory`.
    """
    num_stages = layout.pipeline_model_parallel_size
    symbols = parse_pattern(layout.hybrid_layer_pattern).segments[stage]
    kept, again = 0, 0
    layers = [_layer(model, layout, batch, symbol, precision, on_gpu) for symbol in symbols]
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
    if logits and on_gpu and layout.backend == "local":
        logits += unnormalised_bytes(model, layout, batch, precision)
    return {
        "activations": in_flight * kept + max(0, again - logits),
        "logits": logits,
        "is_calibrated": layout.backend == "local" and not on_gpu,
    }


def kept_bytes(model: ModelRecipe, layout: LayoutPlan, batch: BatchPlan, *, stage: int, precision: str) -> int:
    """Bytes that the layers of a pipeline stage keep of one microbatch on a GPU, nothing computed again."""
    symbols = parse_pattern(layout.hybrid_layer_pattern).segments[stage]
    kinds = {symbol: _layer(model, layout, batch, symbol, precision, True).total for symbol in set(symbols)}
    return sum(kinds[symbol] for symbol in symbols)


def unnormalised_bytes(model: ModelRecipe, layout: LayoutPlan, batch: BatchPlan, precision: str) -> int:
    """Logits as the output layer leaves them, this rank's part of the vocabulary."""
    columns = padded_vocab_size(model.vocab_size) // layout.tensor_model_parallel_size
    return _tokens(layout, batch) * columns * _WIDTHS[precision]


def head_bytes(model: ModelRecipe, layout: LayoutPlan, batch: BatchPlan, precision: str) -> int:
    """Final norm, output layer and cross entropy, which keeps the softmax in fp32 beside mask and targets."""
    tokens = _tokens(layout, batch)
    columns = padded_vocab_size(model.vocab_size) // layout.tensor_model_parallel_size
    stream = _stream(model, layout, batch, precision)
    return stream.input + stream.norm_output + tokens * (4 * columns + 9)


def _dropped(layer: Kept, execution: ExecutionPlan) -> int:
    """Bytes that selective recomputation does not keep."""
    if execution.recompute != "selective":
        return 0
    parts = {"core_attn": layer.core_attn, "mlp": layer.mlp}
    return sum(parts[module] for module in execution.recompute_modules)


def _layer(model: ModelRecipe, layout: LayoutPlan, batch: BatchPlan, symbol: str, precision: str, on_gpu: bool) -> Kept:
    stream, width = _stream(model, layout, batch, precision), _WIDTHS[precision]
    tokens, tensor = _tokens(layout, batch), layout.tensor_model_parallel_size
    if symbol == MLP:
        return stream._replace(mlp=2 * tokens * model.ffn_hidden_size // tensor * width)
    if symbol == ATTENTION:
        heads, groups = model.num_attention_heads // tensor, model.num_query_groups // tensor
        # Else views of linear_qkv's output, where a rank's queries lie between the keys of its groups.
        has_own_queries = heads > groups > 1 or model.position_embedding_type == "rope"
        channels = (heads * (3 if has_own_queries else 2) + 2 * groups) * model.kv_channels
        if model.position_embedding_type == "rope":
            channels += groups * model.kv_channels  # rotated keys
        return stream._replace(rest=tokens * channels * width, core_attn=4 * tokens * heads)
    assert symbol == MAMBA, symbol
    if layout.backend == "te":
        return stream._replace(rest=_mamba_te(model, layout, tokens, width))
    if on_gpu and width < 4:  # fp32 stays in torch: models/kernels.py
        return stream._replace(rest=_mamba_kernels(model, tensor, batch, tokens, width))
    return stream._replace(rest=_mamba_local(model, tensor, batch, tokens, width))


def _mamba_local(model: ModelRecipe, tensor: int, batch: BatchPlan, tokens: int, width: int) -> int:
    """Bytes that `LocalMambaMixer` keeps behind its input norm; the SSD runs in fp32 over whole chunks."""
    inner, heads = mamba_inner_size(model) // tensor, model.mamba_num_heads // tensor
    groups, state = model.mamba_num_groups // tensor, model.mamba_state_dim
    conv = inner + 2 * groups * state
    chunk = min(SSD_CHUNK, batch.sequence_length)
    chunks = -(-tokens // (batch.micro_batch_size * chunk)) * batch.micro_batch_size
    per_token = (inner + conv + heads) * width + 4 * conv  # in_proj's output; the convolution before its SiLU
    per_token += 4 * (conv if width == 4 else inner)  # x of the SSD: a view of the convolution, or a copy in fp32
    per_token += 4 * (2 * groups * state + 3 * heads + inner)  # B, C; dt twice and its sums; y
    per_token += 2 * inner * width + 4 * groups  # input and output of the gated norm, its mean squares
    per_chunk = chunk * (heads + groups) * chunk + inner * state  # decays, C B^T; the state
    return tokens * per_token + 4 * (chunks * per_chunk + batch.micro_batch_size * inner * state)


def _mamba_kernels(model: ModelRecipe, tensor: int, batch: BatchPlan, tokens: int, width: int) -> int:
    """Bytes that `LocalMambaMixer` keeps through the kernels of models/kernels.py.

    Source: `save_for_backward` of mamba-ssm 2.3.2's `MambaChunkScanCombinedFn` and gated `LayerNormFn`, and of
    causal-conv1d 1.7.0's `CausalConv1dFn`. The copy of the scan's output is the gated norm's: rows lie behind one
    another in the one and beside one another in the other. Measured by it: 0.51 GB of `hybrid_130m`, counted 0.50.
    """
    inner, heads = mamba_inner_size(model) // tensor, model.mamba_num_heads // tensor
    groups = model.mamba_num_groups // tensor
    conv = inner + 2 * groups * model.mamba_state_dim
    copies = 2 if batch.micro_batch_size > 1 else 1
    per_token = (inner + conv + heads + 2 * conv + copies * inner + inner) * width + 4 * (3 * heads + groups)
    return tokens * per_token


def _mamba_te(model: ModelRecipe, layout: LayoutPlan, tokens: int, width: int) -> int:
    """Bytes that mamba-ssm's memory-efficient kernel (in_proj's output, y before its gate) and the norm keep."""
    tensor = layout.tensor_model_parallel_size
    inner, heads = mamba_inner_size(model) // tensor, model.mamba_num_heads // tensor
    groups = max(model.mamba_num_groups // tensor, layout.context_parallel_size)
    projected = 2 * inner + 2 * groups * model.mamba_state_dim + heads
    return tokens * (projected + 3 * inner) * width


def _stream(model: ModelRecipe, layout: LayoutPlan, batch: BatchPlan, precision: str) -> Kept:
    """What the input norm keeps: its input and mean squares, and its output for the projection behind it."""
    split = layout.tensor_model_parallel_size if layout.sequence_parallel else 1
    tokens = _tokens(layout, batch)
    residual = tokens * model.hidden_size * _WIDTHS[precision] // split
    return Kept(input=residual, norm_output=residual + 4 * tokens // split)


def _tokens(layout: LayoutPlan, batch: BatchPlan) -> int:
    """Tokens of one microbatch on one rank."""
    return batch.micro_batch_size * batch.sequence_length // layout.context_parallel_size
