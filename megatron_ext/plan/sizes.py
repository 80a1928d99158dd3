"""How many parameters a model has, by kind of layer, without building it.

Source of every formula: megatron-core 0.19, `ssm/mamba_mixer.py`, `transformer/attention.py`,
`transformer/mlp.py`, `models/hybrid/hybrid_layer_specs.py`, for linear layers without biases and
RMSNorm, as Nemotron-H has them (arXiv:2504.03624). A unit test compares them with a built model.
"""

from __future__ import annotations

from typing import NamedTuple

from megatron_ext.plan.stage_plan import ModelSize
from megatron_ext.recipe.layer_pattern import ATTENTION, MAMBA, MLP, parse_pattern
from megatron_ext.recipe.schema import ModelRecipe

VOCAB_MULTIPLE = 1024
"""The vocabulary is padded to a multiple of this whatever the layout is: padding by the tensor
parallel size, as Megatron does by default, would make another model of every layout."""

CONV_KERNEL = 4
"""Taps of the causal convolution (`MambaMixer(d_conv=4)`); its bias is a fifth weight a channel."""


def padded_vocab_size(vocab_size: int) -> int:
    """Rows of the embedding matrix: the vocabulary rounded up to `VOCAB_MULTIPLE`.

    >>> padded_vocab_size(4096), padded_vocab_size(4097)
    (4096, 5120)
    """
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def mamba_inner_size(model: ModelRecipe) -> int:
    """Channels of a Mamba-2 layer: heads times head width."""
    return model.mamba_num_heads * model.mamba_head_dim


class ParameterSize(NamedTuple):
    """One parameter tensor."""

    name: str
    numel: int
    is_split: bool  # over tensor-parallel ranks


def layer_parameter_sizes(model: ModelRecipe, symbol: str) -> tuple[ParameterSize, ...]:
    """The parameters of one layer, its RMSNorm included, in the order in which the local backend holds them."""
    hidden = model.hidden_size
    if symbol == ATTENTION:
        query = model.num_attention_heads * model.kv_channels
        key_value = 2 * model.num_query_groups * model.kv_channels
        return (
            ParameterSize("input_layernorm", hidden, False),
            ParameterSize("linear_proj", query * hidden, True),
            ParameterSize("linear_qkv", (query + key_value) * hidden, True),
        )
    if symbol == MLP:
        return (
            ParameterSize("pre_mlp_layernorm", hidden, False),
            ParameterSize("linear_fc1", model.ffn_hidden_size * hidden, True),
            ParameterSize("linear_fc2", hidden * model.ffn_hidden_size, True),
        )
    inner, heads = mamba_inner_size(model), model.mamba_num_heads
    grouped = 2 * model.mamba_num_groups * model.mamba_state_dim  # B and C
    return (
        ParameterSize("conv1d_weight", (inner + grouped) * CONV_KERNEL, True),
        ParameterSize("conv1d_bias", inner + grouped, True),
        ParameterSize("dt_bias", heads, True),
        ParameterSize("A_log", heads, True),
        ParameterSize("D", heads, True),
        ParameterSize("in_proj", (2 * inner + grouped + heads) * hidden, True),  # z, x, B, C, dt
        ParameterSize("out_proj", inner * hidden, True),
        ParameterSize("mixer.norm", inner, True),
        ParameterSize("norm", hidden, False),
    )


def layer_parameters(model: ModelRecipe) -> dict[str, int]:
    """Parameters of one layer of each kind, its RMSNorm included.

    Returns:
        A count for each layer symbol.
    """
    kinds = (MAMBA, ATTENTION, MLP)
    return {symbol: sum(size.numel for size in layer_parameter_sizes(model, symbol)) for symbol in kinds}


def model_size(model: ModelRecipe) -> ModelSize:
    """Counts the parameters of the whole model, whatever its layout.

    A tied output layer counts 0: it is the embedding matrix.

    Args:
        model: A checked model.

    Returns:
        Counts by kind and their sum.
    """
    pattern = parse_pattern(model.hybrid_layer_pattern)
    one = layer_parameters(model)
    rows = padded_vocab_size(model.vocab_size)
    embedding = rows * model.hidden_size
    parameters = {
        "embedding": embedding,
        "mamba": pattern.count(MAMBA) * one[MAMBA],
        "attention": pattern.count(ATTENTION) * one[ATTENTION],
        "mlp": pattern.count(MLP) * one[MLP],
        "final_norm": model.hidden_size,
        "output": 0 if model.share_embeddings_and_output_weights else embedding,
    }
    return ModelSize(padded_vocab_size=rows, parameters=parameters, total_parameters=sum(parameters.values()))
