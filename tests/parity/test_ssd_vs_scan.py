"""The chunked SSD equals the token-by-token scan.

In float64: values within 1e-10 and gradients within 1e-9. Both sum the same products in another order;
measured differences are below 1e-13 and 2e-12. In float32 the relative error of a sum of
some hundred products is about 1e-6, and the gradients of dt and A sum over a chunk once more: 2e-4 of
the largest gradient.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_ext.models.ssd import ssd_chunked, ssd_scan_ref

VALUE_TOLERANCE = 1e-10
GRADIENT_TOLERANCE = 1e-9
CHUNK = 16


def make_inputs(
    length: int, *, groups: int = 2, batch: int = 2, decay: float = 1.0, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Random inputs with 4 heads of width 3 and states of width 5, all requiring gradients."""
    heads, width, state = 4, 3, 5
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    inputs = {
        "x": normal(batch, length, heads, width),
        "dt": F.softplus(normal(batch, length, heads)),
        "A": -decay * torch.arange(1, heads + 1, dtype=torch.float64) / heads,
        "B": normal(batch, length, groups, state),
        "C": normal(batch, length, groups, state),
        "D": normal(heads),
        "initial_state": normal(batch, heads, width, state),
    }
    return {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}


def outputs_and_gradients(function: object, inputs: dict[str, Tensor], **options: int) -> dict[str, Tensor]:
    """y, the final state, and the gradients of a fixed weighted sum of both."""
    y, state = function(**inputs, **options)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, dtype=torch.float64, generator=generator) for t in (y, state)]
    loss = (y * weights[0]).sum() + (state * weights[1]).sum()
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"y": y.detach(), "state": state.detach()} | {
        f"d{name}": gradient for name, gradient in zip(inputs, gradients, strict=True)
    }


def assert_equal(inputs: dict[str, Tensor], **options: int) -> None:
    ours = outputs_and_gradients(ssd_chunked, inputs, **options)
    scan = outputs_and_gradients(ssd_scan_ref, inputs)
    for name, expected in scan.items():
        tolerance = GRADIENT_TOLERANCE if name.startswith("d") else VALUE_TOLERANCE
        assert ours[name].dtype == torch.float64
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("length", [CHUNK, 4 * CHUNK, 3 * CHUNK + 5, CHUNK + 1, CHUNK - 1, 3, 1])
def test_equals_the_scan_at_every_kind_of_length(length: int) -> None:
    assert_equal(make_inputs(length), chunk_size=CHUNK)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_the_scan_for_any_number_of_groups(groups: int) -> None:
    assert_equal(make_inputs(2 * CHUNK + 3, groups=groups), chunk_size=CHUNK)


def test_equals_the_scan_when_states_decay_to_nothing_inside_a_chunk() -> None:
    inputs = make_inputs(3 * CHUNK, decay=16.0)
    assert (inputs["dt"][:, :CHUNK].sum(1) * inputs["A"]).min() < -200  # far below the smallest exponent
    assert_equal(inputs, chunk_size=CHUNK)


def test_equals_the_scan_with_the_chunk_size_of_training() -> None:
    assert_equal(make_inputs(150, batch=1))


def test_float32_inputs_stay_close_to_the_scan() -> None:
    inputs = make_inputs(3 * CHUNK + 5, dtype=torch.float32)
    ours = outputs_and_gradients(ssd_chunked, inputs, chunk_size=CHUNK)
    scan = outputs_and_gradients(ssd_scan_ref, inputs)
    for name, expected in scan.items():
        error = (ours[name].double() - expected.double()).abs().max() / expected.abs().max()
        assert error < 2e-4, f"{name}: {error}"


def test_bfloat16_inputs_are_accumulated_in_float32() -> None:
    inputs = {name: t.detach() for name, t in make_inputs(CHUNK + 5, dtype=torch.bfloat16).items()}
    y, state = ssd_chunked(**inputs, chunk_size=CHUNK)
    expected_y, expected_state = ssd_scan_ref(**inputs)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(state.double(), expected_state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y.double(), expected_y, rtol=2**-8, atol=1e-4)  # half of bfloat16's spacing
