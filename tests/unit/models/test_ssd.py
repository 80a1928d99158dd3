"""The SSD on numbers that a pencil can check, and one step at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron_ext.models.ssd import ssd_chunked, ssd_scan_ref, ssd_step


def halving_inputs(x: list[float]) -> dict[str, Tensor]:
    """One channel whose state halves at each token: S_t = S_{t-1} / 2 + x_t, y_t = S_t."""
    values = torch.tensor(x, dtype=torch.float64).view(1, -1, 1, 1)
    ones = torch.ones_like(values)
    return {
        "x": values,
        "dt": ones[..., 0],
        "A": torch.tensor([-math.log(2)], dtype=torch.float64),
        "B": ones,
        "C": ones,
    }


@pytest.mark.parametrize("function", [ssd_chunked, ssd_scan_ref])
def test_a_halving_state_gives_the_sums_of_a_pencil(function: object) -> None:
    y, state = function(**halving_inputs([4, 0, 2, 1]), chunk_size=3)  # type: ignore[operator]
    torch.testing.assert_close(y.flatten(), torch.tensor([4, 2, 3, 2.5], dtype=torch.float64))
    torch.testing.assert_close(state.flatten(), torch.tensor([2.5], dtype=torch.float64))


def test_the_skip_weight_adds_the_input() -> None:
    skip = torch.tensor([10.0], dtype=torch.float64)
    y, _ = ssd_chunked(**halving_inputs([4, 0, 2, 1]), D=skip, chunk_size=2)
    torch.testing.assert_close(y.flatten(), torch.tensor([44, 2, 23, 12.5], dtype=torch.float64))


def test_a_sequence_can_be_continued_from_its_state() -> None:
    _, middle = ssd_chunked(**halving_inputs([4, 0]))
    y, _ = ssd_chunked(**halving_inputs([2, 1]), initial_state=middle)
    torch.testing.assert_close(y.flatten(), torch.tensor([3, 2.5], dtype=torch.float64))


def test_heads_read_the_projections_of_their_group() -> None:
    two_heads = {"x": torch.ones(1, 1, 2, 1), "dt": torch.ones(1, 1, 2), "A": torch.full((2,), -1.0)}
    B = torch.tensor([3.0, 5.0]).view(1, 1, 2, 1)
    y, _ = ssd_chunked(**two_heads, B=B, C=torch.ones_like(B))
    assert y.flatten().tolist() == [3.0, 5.0]


def test_one_step_is_one_token_of_the_sequence() -> None:
    inputs = halving_inputs([4, 0, 2, 1])
    state = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    outputs = []
    for t in range(4):
        y, state = ssd_step(
            state, inputs["x"][:, t], inputs["dt"][:, t], inputs["A"], inputs["B"][:, t], inputs["C"][:, t]
        )
        outputs.append(float(y))
    assert outputs == pytest.approx([4, 2, 3, 2.5])


def test_an_empty_sequence_is_refused() -> None:
    inputs = {name: t[:, :0] if name != "A" else t for name, t in halving_inputs([1.0]).items()}
    with pytest.raises(ValueError, match="the length must be positive"):
        ssd_chunked(**inputs)


def test_groups_must_divide_the_heads() -> None:
    inputs = halving_inputs([1.0])
    inputs["B"] = inputs["C"] = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="groups divide the heads"):
        ssd_chunked(**inputs)
