"""The counted parameters are those of the model that is built, kind by kind."""

from __future__ import annotations

from collections import Counter

import pytest

from megatron_ext.models.build import build_model
from megatron_ext.plan.sizes import model_size
from megatron_ext.recipe.layer_pattern import parse_pattern
from megatron_ext.recipe.load import load_file
from megatron_ext.recipe.schema import ModelRecipe
from tests.support.one_process import one_process
from tests.support.plans import make_plan

KINDS = {"M": "mamba", "*": "attention", "-": "mlp"}


def kind_of(name: str, pattern: str) -> str:
    """The kind of a parameter by its upstream name, such as `decoder.layers.3.mixer.in_proj.weight`."""
    if name.startswith("embedding."):
        return "embedding"
    if name.startswith("output_layer."):
        return "output"
    if name.startswith("decoder.final_norm."):
        return "final_norm"
    return KINDS[pattern[int(name.split(".")[2])]]


@pytest.mark.parametrize("tied", [False, True])
def test_a_built_model_has_the_counted_parameters(tied: bool) -> None:
    model = load_file("recipes/models/hybrid_tiny.yaml")
    assert isinstance(model, ModelRecipe)
    model = model.model_copy(update={"share_embeddings_and_output_weights": tied})
    size = model_size(model)
    pattern = parse_pattern(model.hybrid_layer_pattern).symbols
    plan = make_plan(model=model.model_dump(), model_size=size)
    built: Counter[str] = Counter()
    with one_process() as groups:
        for name, parameter in build_model(plan, groups).named_parameters():
            built[kind_of(name, pattern)] += parameter.numel()
    assert built == Counter({kind: count for kind, count in size.parameters.items() if count})
