"""`config.json` of Hugging Face: written from a model, and read into one, or refused.

What is written says what Megatron-Core computes. Two values are not transformers' defaults: `time_step_min` is the
floor that transformers puts under Mamba-2's time steps, and Megatron-Core has none, so it is next to nothing here;
token ids are those of the tokenizer.

The layers stand there as `hybrid_override_pattern`, which transformers 5, vLLM and NVIDIA's own code read.
(Source: transformers 5.23, `configuration_nemotron_h.py`, `configuration_arcee.py`; NVIDIA's config.json of
Nemotron-H-8B-Base-8K and Nemotron-Nano-9B-v2 for the keys that older files have.)
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from data_tools.errors import DataError, RecipeError
from megatron_ext.convert.mapping import ARCEE, NEMOTRON_H, architecture_of
from megatron_ext.recipe.layer_pattern import ATTENTION, LAYER_NAMES, MLP, parse_pattern
from megatron_ext.recipe.schema import ModelRecipe

Dtype = Literal["bf16", "fp32"]
ARCHITECTURES = {NEMOTRON_H: "NemotronHForCausalLM", ARCEE: "ArceeForCausalLM"}
NO_FLOOR = 1e-30
"""`time_step_min` without effect; 0 would do, but transformers takes its logarithm when it draws new weights."""

_HF_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
_LAYER_TYPES = {"linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*", "mlp": "-", "moe": "E"}


class TokenIds(NamedTuple):
    """Of a tokenizer; None where it has no such token."""

    bos: int | None
    eos: int
    pad: int | None


def require_architecture(model: ModelRecipe) -> str:
    """The model type of transformers for a model.

    Raises:
        RecipeError: transformers has none that computes the same.
    """
    found = architecture_of(model)
    if found is None:
        raise RecipeError(
            f"model {model.name}: position_embedding_type is rope and hybrid_layer_pattern {_short(model)}: Nemotron-H "
            "of transformers has no positions, and its Arcee, which has, alternates attention and MLP ('*-*-…'). No "
            "class of transformers computes this model; train it with position_embedding_type: none to export it."
        )
    return found


def _short(model: ModelRecipe) -> str:
    pattern = model.hybrid_layer_pattern
    return repr(pattern if len(pattern) < 24 else f"{pattern[:20]}…")


def hf_config(
    model: ModelRecipe, *, padded_vocab_size: int, ids: TokenIds, sequence_length: int | None, dtype: Dtype
) -> dict[str, Any]:
    """`config.json` of a model.

    Args:
        model: What was trained.
        padded_vocab_size: Rows of its embedding: padding stays, since it took part in every softmax of training.
        ids: Of its tokenizer.
        sequence_length: That it was trained at, as `max_position_embeddings`; None leaves transformers' default.
        dtype: Of the weights.
    """
    kind = require_architecture(model)
    config = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "dtype": _HF_DTYPES[dtype],
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos,
        "pad_token_id": ids.pad,
        "vocab_size": padded_vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "head_dim": model.kv_channels,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": model.init_method_std,
        "tie_word_embeddings": model.share_embeddings_and_output_weights,
        "use_cache": True,
    }
    if sequence_length is not None:
        config["max_position_embeddings"] = sequence_length
    return config | (_arcee_keys(model) if kind == ARCEE else _nemotron_h_keys(model))


def _arcee_keys(model: ModelRecipe) -> dict[str, Any]:
    return {
        "num_hidden_layers": len(model.hybrid_layer_pattern.replace("|", "")) // 2,
        "hidden_act": "relu2",
        "rms_norm_eps": model.layernorm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(model.rotary_base)},
    }


def _nemotron_h_keys(model: ModelRecipe) -> dict[str, Any]:
    symbols = parse_pattern(model.hybrid_layer_pattern).symbols
    return {
        "hybrid_override_pattern": symbols,
        "num_hidden_layers": len(symbols),
        "mlp_hidden_act": "relu2",
        "layer_norm_epsilon": model.layernorm_epsilon,
        "mamba_num_heads": model.mamba_num_heads,
        "mamba_head_dim": model.mamba_head_dim,
        "ssm_state_size": model.mamba_state_dim,
        "n_groups": model.mamba_num_groups,
        "mamba_hidden_act": "silu",
        "mamba_proj_bias": False,
        "use_bias": False,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "time_step_min": NO_FLOOR,
        "residual_in_fp32": False,
    }


_ONLY: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_bias": (False,),
    "mamba_proj_bias": (False,),
    "use_conv_bias": (True,),
    "conv_kernel": (4,),
    "mamba_hidden_act": ("silu",),
    "mlp_hidden_act": ("relu2",),
    "hidden_act": ("relu2",),
    "attention_dropout": (0,),
    "hidden_dropout": (0,),
    "sliding_window": (None,),
    "residual_in_fp32": (False,),
    "num_nextn_predict_layers": (0, None),
    "quantization_config": (None,),
    "rope_scaling": (None,),
    "time_step_limit": ((0.0, math.inf), None),
}
"""What the model here can express of a key that changes what is computed; an absent one has transformers' default."""


def model_of(config: dict[str, Any], file: Path) -> ModelRecipe:
    """The model that a `config.json` describes.

    Args:
        config: Its content.
        file: Where it stands, for messages and for the model's name.

    Raises:
        DataError: With everything that the model here cannot express.
    """
    kind, names = config.get("model_type"), config.get("architectures") or []
    if kind not in ARCHITECTURES or names not in ([], [ARCHITECTURES[kind]]):
        known = " and ".join(f"{name} ({kind})" for kind, name in ARCHITECTURES.items())
        raise DataError(
            f"{file}: architectures {names}, model_type {kind!r}: {known} can be imported, and no other architecture."
        )
    problems = [] if kind == ARCEE else _moe_problems(config)
    for key, allowed in _ONLY.items():
        value = _plain(config[key]) if key in config else allowed[0]
        if value not in allowed:
            problems.append(f"{key}: {config[key]!r}; only {_plain(allowed[0])!r} can be expressed")
    problems += _rope_problems(config, kind)
    if problems:
        raise DataError(f"{file}: a model that cannot be imported.\n" + "\n".join(f"  {line}" for line in problems))
    try:
        return ModelRecipe(**_model_keys(config, kind), name=file.resolve().parent.name)
    except KeyError as error:
        raise DataError(f"{file}: {error.args[0]}: missing; the model's shapes follow from it.") from None
    except (ValidationError, RecipeError, TypeError) as error:
        raise DataError(f"{file}: cannot be a model of a recipe: {error}") from None


def _model_keys(config: dict[str, Any], kind: str) -> dict[str, Any]:
    keys = {
        "hidden_size": config["hidden_size"],
        "vocab_size": config["vocab_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_query_groups": config.get("num_key_value_heads") or config["num_attention_heads"],
        "share_embeddings_and_output_weights": config.get("tie_word_embeddings", False),
        "init_method_std": config.get("initializer_range", 0.02),
    }
    width = config.get("head_dim") or config.get("attention_head_dim")
    if kind == ARCEE:
        theta = float(_rope_of(config).get("rope_theta", 10_000))
        return keys | {
            "hybrid_layer_pattern": (ATTENTION + MLP) * config["num_hidden_layers"],
            "kv_channels": width or config["hidden_size"] // config["num_attention_heads"],
            "layernorm_epsilon": config.get("rms_norm_eps", 1e-5),
            "position_embedding_type": "rope",
            "rotary_base": int(theta) if theta.is_integer() else theta,
        }
    return keys | {
        "hybrid_layer_pattern": _pattern_of(config),
        "kv_channels": width or 128,
        "layernorm_epsilon": config.get("layer_norm_epsilon", 1e-5),
        "mamba_num_heads": config["mamba_num_heads"],
        "mamba_head_dim": config["mamba_head_dim"],
        "mamba_state_dim": config["ssm_state_size"],
        "mamba_num_groups": config["n_groups"],
    }


def notes_on(config: dict[str, Any]) -> list[str]:
    """Sentences on what transformers computes otherwise than the imported model will."""
    floor = config.get("time_step_min", 0.001)
    if config["model_type"] == ARCEE or "M" not in _pattern_of(config) or floor <= NO_FLOOR:
        return []
    return [
        f"config.json: time_step_min {floor:g}: transformers lifts smaller time steps of Mamba-2 to it; Megatron-Core, "
        "in which Nemotron-H was trained, has no such floor, so the imported model computes without"
    ]


def _pattern_of(config: dict[str, Any]) -> str:
    layers = config.get("layers_block_type") or config.get("layer_types")
    if layers is None:
        return str(config["hybrid_override_pattern"])
    return "".join(_LAYER_TYPES.get(layer, "?") for layer in layers)


def _moe_problems(config: dict[str, Any]) -> list[str]:
    try:
        pattern = _pattern_of(config)
    except KeyError:
        return ["hybrid_override_pattern: missing, and layers_block_type too; they say which layers there are"]
    if "E" in pattern:
        return [f"{pattern.count('E')} of {len(pattern)} layers are mixtures of experts (MoE); only dense hybrids can"]
    unknown = sorted(set(pattern) - set(LAYER_NAMES))
    return [f"hybrid_override_pattern: layers {', '.join(unknown)} are not known here"] if unknown else []


def _rope_of(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10_000)}


def _rope_problems(config: dict[str, Any], kind: str) -> list[str]:
    if kind == NEMOTRON_H:
        return [f"{key}: Nemotron-H has no positions" for key in ("rope_parameters", "rope_theta") if config.get(key)]
    rope = _rope_of(config)
    is_plain = rope.get("rope_type", "default") == "default" and rope.get("partial_rotary_factor", 1) == 1
    return [] if is_plain else [f"rope_parameters: {rope}; only rope_type default over whole heads can be expressed"]


def _plain(value: Any) -> Any:
    """A value without JSON's ways of writing it: transformers writes infinity as an object."""
    if isinstance(value, dict) and "__float__" in value:
        return float(value["__float__"])
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
