"""What a config.json says of a model, and which ones are refused, with every reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from data_tools.errors import DataError, RecipeError
from megatron_ext.convert.hf_config import TokenIds, hf_config, model_of, notes_on, require_architecture
from megatron_ext.recipe.load import load_file
from megatron_ext.recipe.schema import ModelRecipe
from tests.support.plans import MODEL

IDS = TokenIds(bos=None, eos=0, pad=1)
RECIPES = Path(__file__).parents[3] / "recipes" / "models"
NEMOTRON_H_8B: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "attention_head_dim": 128,
    "hidden_size": 4096,
    "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
    "intermediate_size": 21504,
    "mamba_head_dim": 64,
    "mamba_num_heads": 128,
    "n_groups": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_logits_to_keep": 1,
    "ssm_state_size": 128,
    "time_step_limit": [0.0, float("inf")],
    "time_step_min": 0.001,
    "use_conv_bias": True,
    "vocab_size": 131072,
}
"""The keys of NVIDIA's file of Nemotron-H-8B-Base-8K that decide shapes."""


def refusal(**changes: object) -> str:
    with pytest.raises(DataError) as caught:
        model_of(NEMOTRON_H_8B | changes, Path("hub/config.json"))
    return str(caught.value)


def test_the_8b_of_the_hub_is_the_recipe_of_the_8b() -> None:
    ours = load_file(RECIPES / "nemotron_h_8b.yaml")
    assert isinstance(ours, ModelRecipe)
    assert model_of(NEMOTRON_H_8B, Path("hub/config.json")) == ours.model_copy(update={"name": "hub"})


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_shipped_model_comes_back_from_its_config(name: str) -> None:
    model = load_file(RECIPES / f"{name}.yaml")
    assert isinstance(model, ModelRecipe)
    config = hf_config(model, padded_vocab_size=model.vocab_size, ids=IDS, sequence_length=64, dtype="bf16")
    again = model_of(json.loads(json.dumps(config)), Path(name) / "config.json")
    unread = {"mamba_num_heads", "mamba_head_dim", "mamba_state_dim", "mamba_num_groups"}
    unread = unread if "M" not in model.hybrid_layer_pattern else {"rotary_base"}
    assert again.model_dump(exclude=unread) == model.model_dump(exclude=unread)


def test_transformers_reads_the_layers_from_the_pattern() -> None:
    model = ModelRecipe(**MODEL)
    config = hf_config(model, padded_vocab_size=128, ids=IDS, sequence_length=None, dtype="fp32")
    theirs = AutoConfig.for_model(**config)
    assert theirs.layers_block_type == ["linear_attention", "mlp", "full_attention", "linear_attention"]
    assert (theirs.time_step_min, theirs.max_position_embeddings) == (1e-30, 4096)


def test_all_that_cannot_be_expressed_is_named_at_once() -> None:
    text = refusal(attention_bias=True, time_step_limit=[0.001, 0.1], num_nextn_predict_layers=1, rope_theta=10_000)
    assert text.splitlines() == [
        "hub/config.json: a model that cannot be imported.",
        "  attention_bias: True; only False can be expressed",
        "  num_nextn_predict_layers: 1; only 0 can be expressed",
        "  time_step_limit: [0.001, 0.1]; only (0.0, inf) can be expressed",
        "  rope_theta: Nemotron-H has no positions",
    ]


def test_a_mixture_of_experts_is_refused() -> None:
    assert "1 of 3 layers are mixtures of experts (MoE); only dense hybrids can" in refusal(
        hybrid_override_pattern="ME*"
    )
    assert "1 of 2 layers are mixtures" in refusal(layers_block_type=["linear_attention", "moe"])


def test_an_unknown_architecture_is_refused_with_those_that_are_known() -> None:
    text = refusal(architectures=["LlamaForCausalLM"], model_type="llama")
    assert "architectures ['LlamaForCausalLM'], model_type 'llama'" in text
    assert "NemotronHForCausalLM (nemotron_h) and ArceeForCausalLM (arcee) can be imported" in text


def test_a_missing_shape_is_named() -> None:
    config = {key: value for key, value in NEMOTRON_H_8B.items() if key != "ssm_state_size"}
    with pytest.raises(DataError, match="ssm_state_size: missing"):
        model_of(config, Path("hub/config.json"))


def test_transformers_way_of_writing_infinity_is_read() -> None:
    limits = {"time_step_limit": [0.0, {"__float__": "Infinity"}]}
    assert model_of(NEMOTRON_H_8B | limits, Path("hub/config.json")).hidden_size == 4096


def test_a_floor_under_time_steps_is_said_and_not_imported() -> None:
    (note,) = notes_on(NEMOTRON_H_8B)
    assert "time_step_min 0.001: transformers lifts smaller time steps" in note
    assert notes_on(NEMOTRON_H_8B | {"time_step_min": 1e-30}) == []


def test_scaled_rope_of_arcee_is_refused() -> None:
    config = {"model_type": "arcee", "rope_parameters": {"rope_type": "yarn", "rope_theta": 10_000.0}}
    with pytest.raises(DataError, match="only rope_type default over whole heads"):
        model_of(config, Path("hub/config.json"))


def test_a_hybrid_with_rope_cannot_be_exported() -> None:
    model = ModelRecipe(**(MODEL | {"position_embedding_type": "rope"}))
    with pytest.raises(RecipeError, match="position_embedding_type is rope and hybrid_layer_pattern 'M-\\*M'"):
        require_architecture(model)
