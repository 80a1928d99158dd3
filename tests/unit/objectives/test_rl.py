"""The parts of the RL loss, with a pencil."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from data_tools.errors import RecipeError
from megatron_ext.objectives.rl import (
    RlOptions,
    TokenLosses,
    estimate_kl,
    group_advantages,
    length_penalty,
    response_weight,
    token_losses,
    zero_variance_groups,
)

LN2 = math.log(2)


def options(**changed: Any) -> RlOptions:
    return RlOptions(**{"max_new_tokens": 8, "kl_coefficient": 0.0} | changed)


def losses_of(
    ratio: list[float],
    advantages: list[float],
    *,
    reference: list[float] | None = None,
    sampled: list[float] | None = None,
    is_trained: list[bool] | None = None,
    **changed: Any,
) -> tuple[TokenLosses, Tensor]:
    """Losses of tokens whose old log-probability is 0, and the gradient of their sum."""
    log_probs = torch.tensor([ratio]).log().requires_grad_()
    found = token_losses(
        log_probs,
        old_log_probs=torch.zeros(1, len(ratio)),
        sampled_log_probs=torch.tensor([sampled or [0.0] * len(ratio)]),
        reference_log_probs=None if reference is None else torch.tensor([reference]),
        advantages=torch.tensor([advantages]),
        is_trained=torch.tensor([is_trained or [True] * len(ratio)]),
        options=options(**changed),
    )
    found.loss.sum().backward()
    assert log_probs.grad is not None
    return found, log_probs.grad


def test_an_advantage_is_the_distance_from_the_mean_in_standard_deviations() -> None:
    # mean 0.25, sum of squares 0.75, n - 1 = 3: standard deviation 0.5
    found = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), "mean-std")
    torch.testing.assert_close(found, torch.tensor([[1.5, -0.5, -0.5, -0.5]], dtype=torch.float64), rtol=0, atol=4e-6)


def test_leaving_one_out_compares_with_the_mean_of_the_others() -> None:
    assert group_advantages(torch.tensor([[4.0, 1.0, 1.0]]), "leave-one-out").tolist() == [[3.0, -1.5, -1.5]]


def test_the_mean_alone_keeps_the_size_of_rewards() -> None:
    assert group_advantages(torch.tensor([[4.0, 1.0, 1.0]]), "mean").tolist() == [[2.0, -1.0, -1.0]]


@pytest.mark.parametrize("kind", ["mean-std", "leave-one-out", "mean"])
def test_equal_rewards_give_exactly_no_advantage(kind: Any) -> None:
    # the mean of seven float64 of 0.1 is another number than 0.1
    rewards = torch.full((2, 7), 0.1, dtype=torch.float64)
    assert rewards.mean(1)[0] != rewards[0, 0]
    assert group_advantages(rewards, kind).eq(0).all()


def test_only_groups_of_equal_rewards_have_no_variance() -> None:
    assert zero_variance_groups(torch.tensor([[0.0, 0.0], [0.0, 1e-9], [1.0, 1.0]])).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.25, 2.0, -2.5, -2.5),  # inside the upper clip of 0.28
        (1.5, 2.0, -2.56, 0.0),  # outside
        (1.5, -2.0, 3.0, 3.0),  # a bad token that became likelier is still pushed down
        (0.5, -2.0, 1.6, 0.0),  # one that is unlikely enough is not
        (0.5, 2.0, -1.0, -1.0),
    ],
)
def test_the_ratio_is_clipped_where_it_has_gone_far_enough(
    ratio: float, advantage: float, loss: float, slope: float
) -> None:
    found, gradient = losses_of([ratio], [advantage], clip_high=0.28)
    assert found.loss.item() == pytest.approx(loss, rel=1e-6)
    assert gradient.item() == pytest.approx(slope, rel=1e-6)
    assert found.is_clipped_low.item() == (ratio == 0.5 and advantage < 0)
    assert found.is_clipped_high.item() == (ratio == 1.5 and advantage > 0)


def test_at_ratio_one_the_gradient_is_that_of_reinforce() -> None:
    _, gradient = losses_of([1.0, 1.0, 1.0], [0.5, -1.0, 3.0])
    assert gradient.tolist() == [[-0.5, 1.0, -3.0]]


@pytest.mark.parametrize(
    ("kind", "value", "slope"),
    [("k1", LN2, 1.0), ("k2", LN2**2 / 2, LN2), ("k3", 0.5 - 1 + LN2, 1 - 0.5)],
)
def test_kl_estimators_of_a_token_twice_as_likely_as_in_the_reference(kind: Any, value: float, slope: float) -> None:
    log_probs = torch.tensor([LN2 - 3]).requires_grad_()
    found = estimate_kl(log_probs, torch.tensor([-3.0]), kind)
    found.backward()
    assert found.item() == pytest.approx(value, rel=1e-6)
    assert log_probs.grad.item() == pytest.approx(slope, rel=1e-6)  # type: ignore[union-attr]


def test_kl_is_added_with_its_coefficient() -> None:
    found, gradient = losses_of([1.0], [1.0], reference=[-LN2], kl="k2", kl_coefficient=0.5)
    assert found.loss.item() == pytest.approx(-1 + 0.5 * LN2**2 / 2)
    assert gradient.item() == pytest.approx(-1 + 0.5 * LN2)


@pytest.mark.parametrize(("kind", "extra"), [("k1", 1.0), ("k3", 0.0)])
def test_weighted_by_the_ratio_the_gradient_of_an_estimate_is_that_of_the_divergence(kind: Any, extra: float) -> None:
    # d/dtheta sum p log(p / q) = E[log(p / q) d log p]; k1 adds E[d log p], which is 0
    _, gradient = losses_of([1.0], [0.0], reference=[-LN2], kl=kind, kl_coefficient=1.0, kl_weighted=True)
    assert gradient.item() == pytest.approx(LN2 + extra)


def test_the_importance_weight_is_cut_to_its_cap_and_has_no_gradient() -> None:
    sampled = [math.log(0.25), math.log(1 / 1.5)]  # p_old / p_sampled: 4 and 1.5
    found, gradient = losses_of([1.0, 1.0], [1.0, 1.0], sampled=sampled, importance_cap=2.0)
    torch.testing.assert_close(found.loss.detach(), torch.tensor([[-2.0, -1.5]]))
    torch.testing.assert_close(gradient, torch.tensor([[-2.0, -1.5]]))
    assert found.is_truncated.tolist() == [[1.0, 0.0]]


def test_the_importance_weight_leaves_kl_alone() -> None:
    found, _ = losses_of([1.0], [0.0], sampled=[-LN2], reference=[-LN2], kl_coefficient=1.0, importance_cap=4.0)
    assert found.loss.item() == pytest.approx(0.5 - 1 + LN2)


def test_what_stands_at_untrained_tokens_reaches_neither_loss_nor_gradient() -> None:
    nowhere = [float("nan"), float("inf")]
    found, gradient = losses_of(
        [1.0, 0.0, 1.0], [1.0, *nowhere], sampled=[0.0, *nowhere], reference=[0.0, *nowhere],
        is_trained=[True, False, False], kl_coefficient=1.0, importance_cap=2.0,
    )  # fmt: skip
    assert found.loss.tolist() == [[-1.0, 0.0, 0.0]]
    assert gradient.tolist() == [[-1.0, 0.0, 0.0]]
    assert [values.sum().item() for values in found[1:]] == [0.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("aggregation", "per_token", "counted"), [("token", 1.0, 4), ("sequence", 1024.0, 4096), ("group-sum", 512.0, 4096)]
)
def test_a_response_weighs_what_the_aggregation_says(aggregation: Any, per_token: float, counted: int) -> None:
    assert response_weight(4, options(aggregation=aggregation), is_cut_off=True) == (per_token, counted)


def test_a_masked_response_weighs_nothing_where_it_was_cut_off() -> None:
    masked = options(overlong="mask")
    assert response_weight(8, masked, is_cut_off=True) == (0.0, 0)
    assert response_weight(8, masked, is_cut_off=False) == (512.0, 4096)


def test_the_length_penalty_falls_from_0_to_minus_1_over_the_last_tokens() -> None:
    soft = options(overlong="soft-penalty", overlong_penalty_tokens=4)
    assert [length_penalty(length, soft) for length in range(3, 9)] == [0.0, 0.0, -0.25, -0.5, -0.75, -1.0]
    assert length_penalty(8, options()) == 0.0


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"clip_high": 0.0}, "clip_high"),
        ({"kl": "k4"}, "kl"),
        ({"kl_coefficient": -1.0}, "kl_coefficient"),
        ({"kl_coefficient": float("nan")}, "kl_coefficient"),
        ({"importance_cap": 0.5}, "importance_cap"),
        ({"overlong": "soft-penalty"}, "overlong_penalty_tokens"),
        ({"overlong_penalty_tokens": 2}, "overlong_penalty_tokens"),
        ({"kl": "k1", "kl_coefficient": 0.1}, "kl_weighted"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(changed: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError, match=f"^rl.{key}: .* must be "):
        options(**changed)
