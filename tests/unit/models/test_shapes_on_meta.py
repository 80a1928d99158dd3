"""Every model of `recipes/` is built by the real spec, without memory, and has the counted parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel

from megatron_ext.models.build import bare_model
from megatron_ext.plan.sizes import model_size
from megatron_ext.recipe.load import load_file
from megatron_ext.recipe.schema import ModelRecipe
from tests.support.one_process import one_process
from tests.support.plans import make_plan

FOLDER = Path(__file__).parents[3] / "recipes" / "models"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PUBLISHED = {"nemotron_h_8b": 8_100_852_736}
"""docs/reference/paper.md; an independent census says 8.101B."""


def on_meta(model: ModelRecipe) -> HybridModel:
    """The whole model with shapes and no storage; core writes some small vectors to the CPU."""
    plan = make_plan(model=model.model_dump(), model_size=model_size(model), precision="bf16")
    with one_process() as groups, torch.device("meta"):
        return bare_model(plan, groups, backend="local")


def load(name: str) -> ModelRecipe:
    model = load_file(FOLDER / f"{name}.yaml")
    assert isinstance(model, ModelRecipe)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_has_the_counted_parameters(name: str) -> None:
    model = load(name)
    built = sum(parameter.numel() for parameter in on_meta(model).parameters())
    assert built == model_size(model).total_parameters
    assert built == PUBLISHED.get(name, built)


def test_the_widths_of_the_8b_are_nemotron_h_s() -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in on_meta(load("nemotron_h_8b")).named_parameters()}
    assert len({name.split(".")[2] for name in shapes if name.startswith("decoder.layers.")}) == 52
    assert shapes["embedding.word_embeddings.weight"] == (131_072, 4096)
    # z and x of 128 x 64 channels, B and C of 8 groups x 128 states, dt of 128 heads
    assert shapes["decoder.layers.0.mixer.in_proj.weight"] == (2 * 8192 + 2 * 1024 + 128, 4096)
    assert shapes["decoder.layers.1.mlp.linear_fc1.weight"] == (21_504, 4096)
    # 32 query heads, 8 keys and 8 values of 128 channels
    assert shapes["decoder.layers.7.self_attention.linear_qkv.weight"] == ((32 + 8 + 8) * 128, 4096)
