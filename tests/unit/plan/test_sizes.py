"""Parameters are counted exactly from the recipe alone."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.plan.sizes import layer_parameters, model_size, padded_vocab_size
from megatron_ext.recipe.schema import ModelRecipe

PENCIL: dict[str, Any] = {
    "name": "pencil",
    "hybrid_layer_pattern": "M-|*",
    "hidden_size": 4,
    "vocab_size": 10,
    "ffn_hidden_size": 6,
    "num_attention_heads": 2,
    "num_query_groups": 1,
    "kv_channels": 3,
    "mamba_num_heads": 2,
    "mamba_head_dim": 5,
    "mamba_state_dim": 7,
    "mamba_num_groups": 1,
}


def pencil(**changes: Any) -> ModelRecipe:
    return ModelRecipe(**(PENCIL | changes))


def test_one_layer_of_each_kind_as_counted_by_hand() -> None:
    # M: norm 4, in_proj (2*10 + 2*7 + 2) * 4 = 144, conv (10 + 14) * 5 = 120, A_log D dt_bias 6, norm 10, out_proj 40
    # *: norm 4, qkv (2 + 2*1) * 3 * 4 = 48, proj 6 * 4 = 24;  -: norm 4, 2 * 4 * 6 = 48
    assert layer_parameters(pencil()) == {"M": 324, "*": 76, "-": 52}


def test_the_parts_of_a_model_sum_to_its_total() -> None:
    size = model_size(pencil())
    assert size.parameters == {
        "embedding": 4096,
        "mamba": 324,
        "attention": 76,
        "mlp": 52,
        "final_norm": 4,
        "output": 4096,
    }
    assert size.total_parameters == 8648


def test_a_tied_output_layer_is_counted_once() -> None:
    assert model_size(pencil(share_embeddings_and_output_weights=True)).total_parameters == 8648 - 4096


@pytest.mark.parametrize(("ids", "rows"), [(1, 1024), (1024, 1024), (1025, 2048), (131_072, 131_072)])
def test_the_vocabulary_is_padded_to_a_multiple_of_1024(ids: int, rows: int) -> None:
    assert padded_vocab_size(ids) == rows


def test_nemotron_h_8b_has_its_published_size() -> None:
    """Source: the config that TensorRT-LLM, vLLM and Megatron-Bridge copy; transformers 5.23 builds as many."""
    nemotron = ModelRecipe(
        name="nemotron_h_8b",
        hybrid_layer_pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        hidden_size=4096,
        vocab_size=131_072,
        ffn_hidden_size=21_504,
        num_attention_heads=32,
        num_query_groups=8,
        kv_channels=128,
        mamba_num_heads=128,
        mamba_head_dim=64,
        mamba_state_dim=128,
        mamba_num_groups=8,
    )
    assert model_size(nemotron).total_parameters == 8_100_852_736
