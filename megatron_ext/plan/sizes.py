"""How many parameters a model has, by kind of layer, without building it.

Source of every formula: megatron-core 0.19, `ssm/mamba_mixer.py`, `transformer/attention.py`,
`transformer/mlp.py`, `models/hybrid/hybrid_layer_specs.py`, for linear layers without biases and
RMSNorm, as Nemotron-H has them (arXiv:2504.03624). A unit test compares them with a built model.
"""

from __future__ import annotations

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


def layer_parameters(model: ModelRecipe) -> dict[str, int]:
    """Parameters of one layer of each kind, its RMSNorm included.

    Returns:
        A count for each layer symbol.
    """
    hidden = model.hidden_size
    inner = mamba_inner_size(model)
    grouped = 2 * model.mamba_num_groups * model.mamba_state_dim  # B and C
    mamba = (
        hidden  # RMSNorm before the layer
        + (2 * inner + grouped + model.mamba_num_heads) * hidden  # in_proj: z, x, B, C, dt
        + (inner + grouped) * (CONV_KERNEL + 1)  # conv1d weight and bias over x, B, C
        + 3 * model.mamba_num_heads  # A_log, D, dt_bias
        + inner  # gated RMSNorm
        + inner * hidden  # out_proj
    )
    query = model.num_attention_heads * model.kv_channels
    key_value = 2 * model.num_query_groups * model.kv_channels
    attention = hidden + (query + key_value) * hidden + query * hidden
    mlp = hidden + 2 * hidden * model.ffn_hidden_size
    return {MAMBA: mamba, ATTENTION: attention, MLP: mlp}


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
