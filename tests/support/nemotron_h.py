"""Our hybrid and transformers' NemotronHForCausalLM with the same shapes and the same weights."""

from __future__ import annotations

import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel
from torch import Tensor
from transformers import NemotronHConfig, NemotronHForCausalLM

from megatron_ext.plan.stage_plan import StagePlan

LAYER_TYPES = {"M": "linear_attention", "-": "mlp", "*": "full_attention"}
TRAINING_CHUNK_SIZE = 128  # NemotronHConfig's default


def nemotron_h(plan: StagePlan, *, chunk_size: int = TRAINING_CHUNK_SIZE) -> NemotronHForCausalLM:
    """Builds transformers' model in the shapes of a plan.

    It clamps dt at `time_step_min` from below, which Megatron does not, so that is next to 0 here.
    """
    model = plan.model
    config = NemotronHConfig(
        vocab_size=plan.model_size.padded_vocab_size,
        hidden_size=model.hidden_size,
        layers_block_type=[LAYER_TYPES[symbol] for symbol in model.hybrid_layer_pattern],
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        head_dim=model.kv_channels,
        intermediate_size=model.ffn_hidden_size,
        ssm_state_size=model.mamba_state_dim,
        mamba_num_heads=model.mamba_num_heads,
        mamba_head_dim=model.mamba_head_dim,
        n_groups=model.mamba_num_groups,
        chunk_size=chunk_size,
        mlp_hidden_act="relu2",
        layer_norm_epsilon=model.layernorm_epsilon,
        tie_word_embeddings=model.share_embeddings_and_output_weights,
        time_step_min=1e-9,
        use_cache=False,
    )
    return NemotronHForCausalLM(config)


def copy_weights(ours: HybridModel, theirs: NemotronHForCausalLM) -> None:
    """Writes our weights (one rank) into transformers' model; every one of its tensors must be written."""
    weights = {name: parameter.detach() for name, parameter in ours.named_parameters()}
    renamed = {
        "model.embeddings.weight": weights["embedding.word_embeddings.weight"],
        "model.norm_f.weight": weights["decoder.final_norm.weight"],
        "lm_head.weight": weights.get("output_layer.weight", weights["embedding.word_embeddings.weight"]),
    }
    for index, symbol in enumerate(ours.decoder.layer_type_list):
        prefix = f"decoder.layers.{index}."
        layer = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        for name, weight in _LAYERS[symbol](layer, ours).items():
            renamed[f"model.layers.{index}.{name}"] = weight
    theirs.load_state_dict(renamed, strict=True)


def _mamba(layer: dict[str, Tensor], _ours: HybridModel) -> dict[str, Tensor]:
    names = ("in_proj.weight", "out_proj.weight", "norm.weight", "dt_bias", "A_log", "D")
    renamed = {f"mixer.{name}": layer[f"mixer.{name}"] for name in names}
    renamed["mixer.conv1d.weight"] = layer["mixer.conv1d_weight"]
    renamed["mixer.conv1d.bias"] = layer["mixer.conv1d_bias"]
    return renamed | {"norm.weight": layer["norm.weight"]}


def _mlp(layer: dict[str, Tensor], _ours: HybridModel) -> dict[str, Tensor]:
    return {
        "norm.weight": layer["pre_mlp_layernorm.weight"],
        "mixer.up_proj.weight": layer["mlp.linear_fc1.weight"],
        "mixer.down_proj.weight": layer["mlp.linear_fc2.weight"],
    }


def _attention(layer: dict[str, Tensor], ours: HybridModel) -> dict[str, Tensor]:
    config = ours.config
    width = config.kv_channels
    queries = config.num_attention_heads // config.num_query_groups * width
    qkv = layer["self_attention.linear_qkv.weight"].unflatten(0, (config.num_query_groups, -1))
    q, k, v = (part.flatten(0, 1) for part in torch.split(qkv, [queries, width, width], dim=1))
    return {
        "norm.weight": layer["input_layernorm.weight"],
        "mixer.q_proj.weight": q,
        "mixer.k_proj.weight": k,
        "mixer.v_proj.weight": v,
        "mixer.o_proj.weight": layer["self_attention.linear_proj.weight"],
    }


_LAYERS = {"M": _mamba, "-": _mlp, "*": _attention}
