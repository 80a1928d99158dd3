"""Floating-point operations of a model: what its mathematics needs, not what a backend executes.

One multiply-add is two operations. For each token in the forward pass, with h hidden, s the sequence:

| kind       | operations                                                                          |
|------------|-------------------------------------------------------------------------------------|
| projection | 2 h (2w + 2gn + H) + 2 w h in a Mamba-2 layer of w channels, H heads, g groups, state n |
|            | 2 h (d + 2k) + 2 d h in an attention layer of d query and k key (= value) channels  |
|            | 2 h f + 2 f h in an MLP layer of inner width f, not gated                           |
| attention  | 2 s d: q k^T and the product with v take 4 d for each pair, and a causal mask leaves half |
| ssd        | 2 q g n (C B^T) + 2 q w (times x) inside chunks of q tokens, 2 n w + 2 n w into and out of the states |
| convolution | 2 c (w + 2gn) for a depthwise kernel of c taps                                     |
| output     | 2 h V over the padded vocabulary                                                    |

The backward pass has two products for each one of the forward pass: three times as much in all. Norms,
activations, softmax, gates, the decays between chunks, the embedding and the optimizer are left out: they
are no matrix products, and bound by memory. The SSD's count hangs on the chunk: blocks on the diagonal are
counted whole, as the algorithm has them (half of `q` is masked). It is taken at `SSD_CHUNK` on every backend, so
that a kernel of larger chunks (core's default for mamba-ssm is 128) gains no utilisation by them.

Source: projections, attention and factor 3: Kaplan et al., arXiv 2001.08361 section 2.1, and Narayanan et
al., arXiv 2104.04473 appendix, with sizes of our own layers; SSD: Mamba-2, arXiv 2405.21060 section 6. Megatron's
own counter takes 2 h for w and no chunk for the SSD, so it is right for fewer models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from megatron_ext.plan.activations import SSD_CHUNK
from megatron_ext.plan.sizes import CONV_KERNEL, mamba_inner_size, padded_vocab_size
from megatron_ext.plan.stage_plan import ExecutionPlan, LayoutPlan
from megatron_ext.recipe.layer_pattern import ATTENTION, MAMBA, MLP, parse_pattern
from megatron_ext.recipe.schema import ModelRecipe

PASSES = 3
"""Forward, gradients of the inputs, gradients of the weights."""


def layer_flops(model: ModelRecipe, symbol: str, sequence_length: int) -> dict[str, int]:
    """Forward operations of one layer for one token, by kind."""
    hidden = model.hidden_size
    if symbol == MLP:
        return {"projection": 4 * hidden * model.ffn_hidden_size}
    if symbol == ATTENTION:
        query = model.num_attention_heads * model.kv_channels
        key_value = 2 * model.num_query_groups * model.kv_channels
        return {
            "projection": 2 * hidden * (2 * query + key_value),
            "attention": 2 * sequence_length * query,
        }
    assert symbol == MAMBA, symbol
    inner, groups, state = mamba_inner_size(model), model.mamba_num_groups, model.mamba_state_dim
    chunk = min(SSD_CHUNK, sequence_length)
    return {
        "projection": 2 * hidden * (3 * inner + 2 * groups * state + model.mamba_num_heads),
        "ssd": 2 * chunk * (groups * state + inner) + 4 * state * inner,
        "convolution": 2 * CONV_KERNEL * (inner + 2 * groups * state),
    }


def output_flops(model: ModelRecipe) -> int:
    """Forward operations of the output layer for one token."""
    return 2 * model.hidden_size * padded_vocab_size(model.vocab_size)


def token_flops(model: ModelRecipe, sequence_length: int) -> dict[str, int]:
    """Training operations for one token, by kind; recomputation is not in them.

    Args:
        model: A checked model.
        sequence_length: Tokens that attention looks back over.
    """
    segments = parse_pattern(model.hybrid_layer_pattern).symbols
    return _times(PASSES, _forward(model, segments, sequence_length) + Counter(output=output_flops(model)))


def stage_token_kinds(model: ModelRecipe, layout: LayoutPlan, sequence_length: int) -> tuple[dict[str, int], ...]:
    """Training operations for one token in each pipeline stage, by kind, over its tensor-parallel ranks together."""
    segments = parse_pattern(layout.hybrid_layer_pattern).segments
    stages = [_forward(model, segment, sequence_length) for segment in segments]
    stages[-1] += Counter(output=output_flops(model))
    return tuple(_times(PASSES, forward) for forward in stages)


def stage_token_flops(model: ModelRecipe, layout: LayoutPlan, sequence_length: int) -> tuple[int, ...]:
    """Training operations for one token in each pipeline stage, over its tensor-parallel ranks together."""
    return tuple(sum(kinds.values()) for kinds in stage_token_kinds(model, layout, sequence_length))


def recomputed_token_flops(model: ModelRecipe, execution: ExecutionPlan, sequence_length: int) -> int:
    """Forward operations that are done again for one token: all layers, or what is recomputed of them."""
    symbols = parse_pattern(model.hybrid_layer_pattern).symbols
    if execution.recompute == "full":
        return _forward(model, symbols, sequence_length).total()
    if execution.recompute == "none":
        return 0
    attention = layer_flops(model, ATTENTION, sequence_length)["attention"] * symbols.count(ATTENTION)
    mlp = layer_flops(model, MLP, sequence_length)["projection"] * symbols.count(MLP)
    parts = {"core_attn": attention, "mlp": mlp}
    return sum(parts[module] for module in execution.recompute_modules)


def _forward(model: ModelRecipe, symbols: str, sequence_length: int) -> Counter[str]:
    total: Counter[str] = Counter()
    for symbol in (MAMBA, ATTENTION, MLP):
        total += Counter(_times(symbols.count(symbol), layer_flops(model, symbol, sequence_length)))
    return total


def _times(factor: int, flops: Mapping[str, int]) -> dict[str, int]:
    return {kind: factor * number for kind, number in flops.items()}
