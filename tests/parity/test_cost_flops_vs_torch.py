"""Planned operations against torch's `FlopCounterMode` on the real local layers, on tensors without data.

The counter sees the matrix products (`mm`, `bmm`, `baddbmm_`) of the projections, the output layer and the SSD, whose
blocks are whole in the plan too: forward and backward pass together equal the plan to the last operation, so
no tolerance is used. It sees nothing of CPU attention and of our convolution by shifted multiply-adds (a depthwise
`conv1d` it would count as dense in the backward pass); these two are counted one by one here. A real attention
kernel may compute up to twice as much as the plan says: the mask allows half of the pairs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from megatron_ext.models.build import bare_model
from megatron_ext.plan.flops import PASSES, layer_flops, recomputed_token_flops, token_flops
from megatron_ext.plan.sizes import model_size
from megatron_ext.plan.stage_plan import ExecutionPlan
from megatron_ext.recipe.load import load_file
from megatron_ext.recipe.schema import ModelRecipe
from tests.support.one_process import one_process
from tests.support.plans import make_plan

ROWS, LENGTH = 2, 256


def products_in_place(_: Any, left: list[int], right: list[int], **__: Any) -> int:
    """Operations of `baddbmm_`, [b, m, k] x [b, k, n]; the counter knows it only out of place."""
    return 2 * left[0] * left[1] * left[2] * right[2]


def recipe_model(file: str, **changes: Any) -> ModelRecipe:
    model = load_file(f"recipes/models/{file}.yaml")
    assert isinstance(model, ModelRecipe)
    return ModelRecipe(**(model.model_dump() | changes))


MODELS = {
    "tiny": recipe_model("hybrid_tiny"),
    "inner-width-not-twice-hidden": recipe_model("hybrid_tiny", mamba_num_heads=6, mamba_head_dim=16, hidden_size=96),
    "widths-of-the-8b": recipe_model("nemotron_h_8b", hybrid_layer_pattern="M-M*-"),
}


def executed_products(model: ModelRecipe, execution: ExecutionPlan) -> int:
    """Operations in matrix products of a forward and a backward pass over `ROWS` samples of `LENGTH` tokens."""
    plan = make_plan(model=model.model_dump(), batch={"sequence_length": LENGTH})
    plan = plan.model_copy(update={"execution": execution, "model_size": model_size(model)})
    with one_process() as groups, FakeTensorMode():
        built = bare_model(plan, groups, backend="local")
        tokens = torch.zeros(ROWS, LENGTH, dtype=torch.long)
        positions = torch.arange(LENGTH).expand_as(tokens)
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: products_in_place}) as counter:
            built(tokens, positions, None).sum().backward()
        return counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_planned_matrix_products_are_those_that_run(name: str) -> None:
    planned = token_flops(MODELS[name], LENGTH)
    products = planned["projection"] + planned["ssd"] + planned["output"]
    assert executed_products(MODELS[name], ExecutionPlan()) == products * ROWS * LENGTH


@pytest.mark.parametrize(
    "execution",
    [
        ExecutionPlan(recompute="full"),
        ExecutionPlan(recompute="full", recompute_num_layers=3),
        ExecutionPlan(recompute="selective", recompute_modules=("mlp",)),
    ],
    ids=["full", "full-by-3", "mlp"],
)
def test_planned_recomputation_is_what_runs_on_top(execution: ExecutionPlan) -> None:
    model = MODELS["tiny"]
    planned = recomputed_token_flops(model, execution, LENGTH)
    if execution.recompute == "full":  # the counter sees neither attention nor convolution
        planned -= layer_flops(model, "*", LENGTH)["attention"] + 3 * layer_flops(model, "M", LENGTH)["convolution"]
    on_top = executed_products(model, execution) - executed_products(model, ExecutionPlan())
    assert on_top == planned * ROWS * LENGTH


def test_attention_is_counted_pair_by_pair() -> None:
    model, counted = MODELS["tiny"], 0
    for query in range(LENGTH):
        for _key in range(query + 1):
            for _head in range(model.num_attention_heads):
                counted += 2 * model.kv_channels  # q k
                counted += 2 * model.kv_channels  # weight times v
    planned = layer_flops(model, "*", LENGTH)["attention"] * LENGTH
    assert counted == planned + planned // LENGTH  # half of all pairs leaves out half of the diagonal


def test_the_convolution_is_counted_tap_by_tap() -> None:
    model = MODELS["tiny"]
    channels = 8 * 32 + 2 * 2 * 32  # x; B and C of two groups
    taps_of_a_token = [(channel, tap) for channel in range(channels) for tap in range(4)]
    assert layer_flops(model, "M", LENGTH)["convolution"] == 2 * len(taps_of_a_token)
    assert token_flops(model, LENGTH)["convolution"] == 3 * PASSES * 2 * len(taps_of_a_token)
