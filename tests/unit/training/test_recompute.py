"""Recomputed activations give the same bits and save fewer of them.

Megatron-Core's checkpoint functions save and restore the GPU's random state around the second forward pass; on a
CPU the device scope hands them torch's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_ext.models.build import build_model
from megatron_ext.plan.stage_plan import ExecutionPlan
from tests.support.one_process import one_process, random_tokens
from tests.support.plans import make_plan

SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"recompute": "full"},
    "full-two-layers": {"recompute": "full", "recompute_num_layers": 2},
    "core_attn": {"recompute": "selective", "recompute_modules": ("core_attn",)},
    "mlp": {"recompute": "selective", "recompute_modules": ("mlp",)},
    "core_attn-mlp": {"recompute": "selective", "recompute_modules": ("core_attn", "mlp")},
}


class Pass(NamedTuple):
    """One forward and backward pass."""

    losses: Tensor
    gradients: dict[str, Tensor]
    saved_bytes: int
    random_state: Tensor


@pytest.fixture(scope="module")
def groups() -> Iterator[ProcessGroupCollection]:
    with one_process() as joined:
        yield joined


def train_pass(groups: ProcessGroupCollection, precision: str, pattern: str, **execution: Any) -> Pass:
    plan = make_plan(model={"hybrid_layer_pattern": pattern}, precision=precision, execution=ExecutionPlan(**execution))
    model = build_model(plan, groups)
    if precision == "bf16":
        model = model.bfloat16()
    torch.manual_seed(7)
    tokens = random_tokens(2, 32)
    positions = torch.arange(32).expand_as(tokens)
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(tokens, positions, None, labels=tokens.roll(-1, 1))
        saved_bytes = sum(storages.values())  # what the forward pass left, before the backward pass saves again
    losses.float().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return Pass(losses.detach(), gradients, saved_bytes, torch.get_rng_state())


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def plain(request: pytest.FixtureRequest, groups: ProcessGroupCollection) -> tuple[str, Pass]:
    return request.param, train_pass(groups, request.param, "M-*M-*")


@pytest.mark.parametrize("name", SETTINGS)
def test_recompute_changes_no_bit_and_saves_less(
    groups: ProcessGroupCollection, plain: tuple[str, Pass], name: str
) -> None:
    precision, expected = plain
    got = train_pass(groups, precision, "M-*M-*", **SETTINGS[name])
    assert torch.equal(got.losses, expected.losses)
    for parameter, gradient in expected.gradients.items():
        assert torch.equal(got.gradients[parameter], gradient), parameter
    assert got.saved_bytes < expected.saved_bytes, f"{got.saved_bytes} of {expected.saved_bytes} bytes"
    assert torch.equal(got.random_state, expected.random_state), "the second forward pass moved the generator"


def test_full_recompute_of_a_mamba_stack_saves_most_of_it(groups: ProcessGroupCollection) -> None:
    expected = train_pass(groups, "fp32", "MMMM")
    got = train_pass(groups, "fp32", "MMMM", recompute="full")
    assert torch.equal(got.losses, expected.losses)
    assert all(torch.equal(got.gradients[name], gradient) for name, gradient in expected.gradients.items())
    assert got.saved_bytes < expected.saved_bytes / 4


@pytest.mark.parametrize("modules", [("core_attn",), ("mlp",)])
def test_selective_recompute_has_no_effect_on_mamba_layers(
    groups: ProcessGroupCollection, modules: tuple[str, ...]
) -> None:
    """What a pattern of Mamba layers alone would be promised and not given."""
    expected = train_pass(groups, "fp32", "MM")
    got = train_pass(groups, "fp32", "MM", recompute="selective", recompute_modules=modules)
    assert got.saved_bytes == expected.saved_bytes
