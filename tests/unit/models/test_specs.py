"""Parameters and checkpoint keys are those of the stock hybrid spec."""

from __future__ import annotations

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import ModuleSpec, import_module

from megatron_ext.models.build import build_model
from megatron_ext.models.config import transformer_config
from megatron_ext.models.specs import local_hybrid_stack_spec
from tests.support.plans import make_plan

MAMBA_KEYS = (
    "mixer.A_log",
    "mixer.D",
    "mixer.conv1d.bias",
    "mixer.conv1d.weight",
    "mixer.dt_bias",
    "mixer.in_proj.layer_norm_weight",
    "mixer.in_proj.weight",
    "mixer.norm.weight",
    "mixer.out_proj.weight",
)
MLP_KEYS = ("mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight")
ATTENTION_KEYS = (
    "self_attention.linear_proj.weight",
    "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_qkv.weight",
)


@pytest.fixture(scope="module")
def model(groups: ProcessGroupCollection) -> HybridModel:
    return build_model(make_plan(model={"hybrid_layer_pattern": "M-*"}), groups)


def test_checkpoint_keys_are_those_of_the_stock_transformer_engine_spec(
    model: HybridModel, groups: ProcessGroupCollection
) -> None:
    # Source: hybrid_stack_spec of core 0.19, where TELayerNormColumnParallelLinear holds the input norms.
    state = model.sharded_state_dict(metadata={"dp_cp_group": groups.dp_cp})
    weights = {value.key for value in state.values() if isinstance(value, ShardedTensor | ShardedTensorFactory)}
    layers = (MAMBA_KEYS, MLP_KEYS, ATTENTION_KEYS)
    expected = {f"decoder.layers.{number}.{key}" for number, keys in enumerate(layers) for key in keys}
    assert weights == expected | {
        "embedding.word_embeddings.weight",
        "decoder.final_norm.weight",
        "output_layer.weight",
    }


def test_packed_projections_are_stored_part_by_part(model: HybridModel, groups: ProcessGroupCollection) -> None:
    state = model.sharded_state_dict(metadata={"dp_cp_group": groups.dp_cp})
    parts = {
        name: [part.key.rsplit(".", 1)[1] for part in state[f"decoder.layers.0.mixer.{name}"].build()]
        for name in ("in_proj.weight", "conv1d_weight", "conv1d_bias")
    }
    assert parts == {
        "in_proj.weight": ["z", "x", "B", "C", "dt"],
        "conv1d_weight": ["x", "B", "C"],
        "conv1d_bias": ["x", "B", "C"],
    }


def test_the_spec_can_be_imported_by_name() -> None:
    # Stock pretrain_hybrid.py resolves `--spec MODULE NAME` by this call.
    spec = import_module(("megatron_ext.models.specs", "local_hybrid_stack_spec"))
    assert isinstance(spec, ModuleSpec)
    assert spec.module.__name__ == "LocalHybridStack"


def test_a_tied_model_has_no_output_matrix(groups: ProcessGroupCollection) -> None:
    tied = build_model(make_plan(model={"share_embeddings_and_output_weights": True}), groups)
    assert "output_layer.weight" not in dict(tied.named_parameters())


def test_the_spec_initialises_itself_where_core_asks_for_it(groups: ProcessGroupCollection) -> None:
    # Stock training leaves perform_initialization on; our own runs turn it off.
    config = transformer_config(make_plan())
    config.perform_initialization = True
    torch.manual_seed(0)
    stock = HybridModel(
        config,
        local_hybrid_stack_spec,
        vocab_size=128,
        max_sequence_length=32,
        hybrid_layer_pattern="M-*M",
        pg_collection=groups,
    )
    mixer = stock.decoder.layers[0].mixer
    assert bool((mixer.A_log.exp() >= 1).all())
    assert bool((mixer.A_log.exp() <= 16).all())
    assert torch.equal(mixer.D, torch.ones(4))
    assert 0 < float(mixer.conv1d_weight.abs().max()) <= 0.5
    assert float(mixer.in_proj.weight.std()) == pytest.approx(0.02, rel=0.1)
