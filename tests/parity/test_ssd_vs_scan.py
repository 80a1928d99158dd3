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


def outputs_and_gradients(function: object, inputs: dict[str, Tensor], **options: object) -> dict[str, Tensor]:
    """y, the final state, and the gradients of a fixed weighted sum of both."""
    y, state = function(**inputs, **options)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, dtype=torch.float64, generator=generator) for t in (y, state)]
    loss = (y * weights[0]).sum() + (state * weights[1]).sum()
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"y": y.detach(), "state": state.detach()} | {
        f"d{name}": gradient for name, gradient in zip(inputs, gradients, strict=True)
    }


def assert_equal(inputs: dict[str, Tensor], *, seq_idx: Tensor | None = None, **options: int) -> None:
    ours = outputs_and_gradients(ssd_chunked, inputs, seq_idx=seq_idx, **options)
    scan = outputs_and_gradients(ssd_scan_ref, inputs, seq_idx=seq_idx)
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


def documents(*lengths: int, rows: int = 2) -> Tensor:
    """Document of each token, [rows, tokens], the same in all rows."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).int().expand(rows, -1)


@pytest.mark.parametrize("offset", range(CHUNK))
def test_states_are_reset_at_every_offset_of_a_chunk(offset: int) -> None:
    first = CHUNK + offset
    assert_equal(make_inputs(3 * CHUNK + 5), seq_idx=documents(first, 2 * CHUNK + 5 - offset), chunk_size=CHUNK)


@pytest.mark.parametrize(
    "lengths", [(1,) * 40, (3, 1, 2, 1, 30, 1, 1), (CHUNK, CHUNK, CHUNK), (1, 2 * CHUNK, 1), (CHUNK - 1, 1, 1, CHUNK)]
)
def test_states_are_reset_for_any_lengths_of_documents(lengths: tuple[int, ...]) -> None:
    assert_equal(make_inputs(sum(lengths)), seq_idx=documents(*lengths), chunk_size=CHUNK)


def test_rows_may_hold_different_documents() -> None:
    seq_idx = torch.cat([documents(5, 32, rows=1), documents(20, 1, 16, rows=1)])
    assert_equal(make_inputs(37), seq_idx=seq_idx, chunk_size=CHUNK)


def test_the_scan_of_a_packed_row_is_the_scan_of_each_document() -> None:
    lengths = (4, 1, 7)
    inputs = {name: t.detach() for name, t in make_inputs(sum(lengths)).items()}
    y, state = ssd_scan_ref(**inputs, seq_idx=documents(*lengths))
    shared = {name: inputs[name] for name in ("A", "D")}
    cut = {name: inputs[name].split(lengths, dim=1) for name in ("x", "dt", "B", "C")}
    alone = [ssd_scan_ref(**shared, **{name: parts[i] for name, parts in cut.items()}) for i in range(3)]
    first, _ = ssd_scan_ref(**shared, **{n: p[0] for n, p in cut.items()}, initial_state=inputs["initial_state"])
    torch.testing.assert_close(y, torch.cat([first, alone[1][0], alone[2][0]], dim=1), rtol=0, atol=0)
    torch.testing.assert_close(state, alone[2][1], rtol=0, atol=0)


@pytest.mark.parametrize("changed", [slice(0, 18), slice(18, 37)])
def test_nothing_at_all_crosses_a_boundary(changed: slice) -> None:
    inputs = make_inputs(37, decay=0.01)
    other = slice(18, 37) if changed.start == 0 else slice(0, 18)
    changed_inputs = {name: t.detach().clone() for name, t in inputs.items()}
    for name in ("x", "dt", "B", "C"):
        changed_inputs[name][:, changed] *= 1.7
    before, after = (
        outputs_and_gradients(ssd_chunked, {n: t.requires_grad_() for n, t in given.items()}, seq_idx=documents(18, 19))
        for given in (inputs, changed_inputs)
    )
    for name in ("y", "dx", "ddt", "dB", "dC"):
        assert not torch.equal(before[name][:, changed], after[name][:, changed]), name
        assert torch.equal(before[name][:, other], after[name][:, other]), name


def test_states_that_decay_to_nothing_in_one_document_leave_the_next_whole() -> None:
    inputs = make_inputs(3 * CHUNK, decay=40.0, dtype=torch.float32)  # exp of a chunk's decay overflows float32
    ours = outputs_and_gradients(ssd_chunked, inputs, seq_idx=documents(CHUNK + 13, 2 * CHUNK - 13), chunk_size=CHUNK)
    assert all(torch.isfinite(t).all() for t in ours.values())
