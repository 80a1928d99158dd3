"""The plan's numbers arrive in Megatron-Core's config."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version

from megatron_ext.models.activation import squared_relu
from megatron_ext.models.config import transformer_config
from megatron_ext.recipe.fp8_schema import Fp8Recipe
from tests.support.plans import make_plan


def test_sizes_are_the_plans() -> None:
    config = transformer_config(make_plan())
    sizes = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels")
    assert [getattr(config, size) for size in sizes] == [4, 32, 64, 4, 2, 8]
    mamba = ("mamba_num_heads", "mamba_head_dim", "mamba_state_dim", "mamba_num_groups")
    assert [getattr(config, size) for size in mamba] == [4, 16, 8, 2]


def test_pipeline_cuts_are_no_layers() -> None:
    plan = make_plan(layout={"pipeline_model_parallel_size": 2})
    assert plan.layout.hybrid_layer_pattern == "M-|*M"
    config = transformer_config(plan)
    assert (config.num_layers, config.pipeline_model_parallel_size) == (4, 2)


def test_precision_sets_parameters_and_pipeline_messages() -> None:
    config = transformer_config(make_plan(precision="bf16"))
    assert (config.bf16, config.params_dtype, config.pipeline_dtype) == (True, torch.bfloat16, torch.bfloat16)


def test_the_loss_is_divided_by_tokens_not_by_microbatches() -> None:
    assert transformer_config(make_plan()).calculate_per_token_loss is True


def test_te_takes_the_path_that_resets_states_in_packed_rows() -> None:
    assert transformer_config(make_plan(), "te").use_mamba_mem_eff_path is True


def test_layout_is_the_plans() -> None:
    plan = make_plan(layout={"tensor_model_parallel_size": 2, "sequence_parallel": True})
    config = transformer_config(plan)
    assert (config.tensor_model_parallel_size, config.sequence_parallel) == (2, True)


def test_the_mlp_is_not_gated_and_squares_its_relu() -> None:
    config = transformer_config(make_plan())
    assert (config.gated_linear_unit, config.activation_func) == (False, squared_relu)


def test_fp8_is_handed_to_te_as_core_names_it() -> None:
    fp8 = Fp8Recipe(recipe="tensorwise", bf16_edge_layers=2)
    config = transformer_config(make_plan(precision="bf16", fp8=fp8), "te")
    assert (config.fp8, config.fp8_recipe, config.fp8_param) == ("hybrid", "tensorwise", False)
    ends = (config.num_layers_at_start_in_bf16, config.num_layers_at_end_in_bf16)
    assert (config.first_last_layers_bf16, ends) == (True, (2, 2))


def test_without_edge_layers_all_layers_are_in_fp8() -> None:
    config = transformer_config(make_plan(precision="bf16", fp8=Fp8Recipe(recipe="blockwise")), "te")
    assert (config.fp8_recipe, config.first_last_layers_bf16) == ("blockwise", False)


def test_no_fp8_is_no_fp8() -> None:
    assert transformer_config(make_plan(precision="bf16"), "te").fp8 is None


@pytest.mark.parametrize(("engine", "is_taken"), [("2.17.1", False), ("2.18.0", True), ("2.20.2", True)])
def test_a_fused_cross_entropy_that_rounds_gradients_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, engine: str, is_taken: bool
) -> None:
    monkeypatch.setattr("megatron_ext.models.config.has_gpu", lambda: True)  # nothing of a config is on a device
    monkeypatch.setattr("megatron.core.utils._te_version", Version(engine))
    config = transformer_config(make_plan(precision="bf16"), "te")
    assert (config.cross_entropy_loss_fusion, config.cross_entropy_fusion_impl) == (is_taken, "te")
