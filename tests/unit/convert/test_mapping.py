"""Rows of Hugging Face tensors and of Megatron-Core tensors: on a model that a pencil can lay out."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from megatron_ext.convert.mapping import architecture_of, core_shapes, hf_shapes, pieces_of
from megatron_ext.convert.tensors import by_hf_name, hf_tensor
from megatron_ext.recipe.schema import ModelRecipe
from tests.support.plans import MODEL

RECORD = Path(__file__).parents[2] / "data" / "stock_hybrid_keys.json"


def model(**changes: object) -> ModelRecipe:
    return ModelRecipe(**(MODEL | changes))


def test_names_and_shapes_are_those_that_the_stock_spec_writes_at_two_ranks() -> None:
    recorded = {key: tuple(shape) for key, (shape, _cuts) in json.loads(RECORD.read_text()).items()}
    assert core_shapes(pieces_of(model(hybrid_layer_pattern="M-*"), 128)) == recorded


def test_every_row_of_either_side_is_in_one_piece() -> None:
    pieces = pieces_of(model(), 128)
    for side, shapes in (("hf", hf_shapes(pieces)), ("core", core_shapes(pieces))):
        rows: dict[str, list[int]] = {name: [] for name in shapes}
        for piece in pieces:
            begin = getattr(piece, f"{side}_row")
            rows[getattr(piece, side)] += range(begin, begin + piece.rows)
        assert {name: sorted(found) for name, found in rows.items()} == {
            name: list(range(shape[0])) for name, shape in shapes.items()
        }


def test_queries_keys_and_values_are_taken_group_by_group() -> None:
    # Two groups of two query heads of one channel: rows q0 q1 k v, q2 q3 k v.
    small = model(hybrid_layer_pattern="*", hidden_size=1, num_attention_heads=4, num_query_groups=2, kv_channels=1)
    qkv = torch.tensor([[0.0], [1], [10], [20], [2], [3], [11], [21]])
    pieces = by_hf_name(pieces_of(small, 1))
    names = [f"backbone.layers.0.mixer.{part}_proj.weight" for part in "qkv"]
    read = {"decoder.layers.0.self_attention.linear_qkv.weight": qkv}.__getitem__
    found = [hf_tensor(pieces[name], read, dtype=torch.float32).flatten().tolist() for name in names]
    assert found == [[0, 1, 2, 3], [10, 11], [20, 21]]


def test_the_input_projection_is_gate_channels_b_c_and_time_steps_in_this_order() -> None:
    small = model(
        hybrid_layer_pattern="M",
        hidden_size=1,
        mamba_num_heads=1,
        mamba_head_dim=2,
        mamba_state_dim=1,
        mamba_num_groups=1,
    )
    parts = {"z": [1.0, 2], "x": [3, 4], "B": [5], "C": [6], "dt": [7]}
    read = {f"decoder.layers.0.mixer.in_proj.weight.{key}": torch.tensor(rows)[:, None] for key, rows in parts.items()}
    pieces = by_hf_name(pieces_of(small, 1))["backbone.layers.0.mixer.in_proj.weight"]
    assert hf_tensor(pieces, read.__getitem__, dtype=torch.float32).flatten().tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_tied_output_layer_repeats_the_embedding() -> None:
    pieces = by_hf_name(pieces_of(model(share_embeddings_and_output_weights=True), 128))
    assert [piece.core for piece in pieces["lm_head.weight"]] == ["embedding.word_embeddings.weight"]


def test_two_layers_with_rope_are_one_block_of_arcee() -> None:
    rope = {"hybrid_layer_pattern": "*-*-", "position_embedding_type": "rope"}
    names = [name for name in hf_shapes(pieces_of(model(**rope), 128)) if ".layers.1." in name]
    assert names == [
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.1.self_attn.v_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.1.post_attention_layernorm.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    ]


def test_a_hybrid_with_rope_has_no_class_of_transformers() -> None:
    found = [
        architecture_of(model(hybrid_layer_pattern=pattern, position_embedding_type=positions))
        for pattern, positions in (("M-*", "none"), ("*-", "none"), ("*-", "rope"), ("M-*-", "rope"), ("*-*", "rope"))
    ]
    assert found == ["nemotron_h", "nemotron_h", "arcee", None, None]
