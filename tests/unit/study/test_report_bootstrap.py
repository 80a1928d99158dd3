"""Draws of items and seeds against what scipy, or a pencil, says of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from megatron_ext.study.report.bootstrap import (
    Array,
    ItemScores,
    draw_both,
    draw_items,
    draw_known,
    ends,
    generator_of,
    spread_of_seeds,
)
from megatron_ext.study.report.seed_tree import SeedRun, SeedTree


def draw_seeds(arms: list[list[float]], name: str = "test") -> Array:
    return SeedTree([[SeedRun(value) for value in values] for values in arms]).draw(generator_of(name))


def scores(values: list[float], weights: list[float] | None = None, *, prefix: str = "i") -> ItemScores:
    items = tuple(f"{prefix}{number:04d}" for number in range(len(values)))
    return ItemScores(items, np.asarray(values, float), np.asarray(weights or [1.0] * len(values)))


def draws(*arms: list[ItemScores]) -> Array:
    return draw_items(arms, generator_of("test"))


def test_resampled_right_answers_are_binomial() -> None:
    drawn = draws([scores([1.0] * 30 + [0.0] * 70)])[:, 0]
    low, high = ends(drawn, 0.3)
    expected = [stats.binom(100, 0.3).ppf(share) / 100 for share in (0.025, 0.975)]
    assert (low, high) == pytest.approx(expected, abs=0.011)  # one of the hundred items
    assert drawn.std() == pytest.approx((0.3 * 0.7 / 100) ** 0.5, rel=0.05)


def test_arms_with_the_same_items_are_drawn_together() -> None:
    easy, hard = scores([1.0] * 60 + [0.0] * 40), scores([1.0] * 50 + [0.0] * 50)
    drawn = draws([easy], [hard], [easy])
    assert (drawn[:, 0] == drawn[:, 2]).all()
    # They differ in ten of a hundred items, always in one direction: a binomial of 100 items at 0.1.
    assert (drawn[:, 0] - drawn[:, 1]).std() == pytest.approx((0.1 * 0.9 / 100) ** 0.5, rel=0.05)


def test_arms_with_other_items_are_drawn_apart() -> None:
    one, other = scores([1.0] * 50 + [0.0] * 50), scores([1.0] * 50 + [0.0] * 50, prefix="j")
    drawn = draws([one], [other])
    assert (drawn[:, 0] - drawn[:, 1]).std() == pytest.approx((2 * 0.25 / 100) ** 0.5, rel=0.05)


def test_the_mean_of_replicates_is_drawn() -> None:
    right, wrong = scores([1.0, 1.0, 0.0, 0.0]), scores([0.0, 0.0, 1.0, 1.0])
    assert (draws([right, wrong])[:, 0] == 0.5).all()  # every item is right once in two replicates


def test_a_text_weighs_as_many_tokens_as_it_has() -> None:
    nats = scores([10.0, 90.0], [10.0, 30.0])
    assert nats.mean == 2.5
    assert set(np.round(draws([nats])[:, 0], 9)) == {1.0, 2.5, 3.0}  # one text twice, both, the other twice


def test_all_right_is_not_certain_and_follows_jeffreys() -> None:
    low, high = ends(draws([scores([1.0] * 20)])[:, 0], 1.0)
    assert low == pytest.approx(stats.beta(20.5, 0.5).ppf(0.025), abs=0.01)
    assert high == 1.0
    assert ends(draws([scores([0.0] * 20)])[:, 0], 0.0)[0] == 0.0


def test_arms_of_which_every_answer_is_wrong_have_one_interval_and_are_not_known_to_be_equal() -> None:
    drawn = draws([scores([0.0] * 24)], [scores([0.0] * 24)])
    assert ends(drawn[:, 0], 0.0) == ends(drawn[:, 1], 0.0)
    low, high = ends(drawn[:, 1] - drawn[:, 0], 0.0)
    assert low < -0.02 < 0.02 < high


def test_known_errors_are_normal() -> None:
    drawn = draw_known([(0.5, 0.1)], generator_of("test"))[:, 0]
    assert ends(drawn, 0.5) == pytest.approx((0.5 - 0.196, 0.5 + 0.196), abs=0.015)


def test_the_spread_of_seeds_is_pooled_over_arms() -> None:
    arms = [[1.0, 2.0, 3.0], [10.0, 14.0], [7.0]]
    found = spread_of_seeds(arms)
    assert found is not None
    assert found.degrees == 3
    assert found.deviation == pytest.approx(((2.0 + 8.0) / 3) ** 0.5)
    assert spread_of_seeds([[1.0], [2.0]]) is None


def test_without_item_noise_two_arms_are_compared_as_by_the_t_test() -> None:
    first, second = [0.50, 0.54, 0.55], [0.40, 0.47, 0.43]
    drawn = draw_seeds([first, second])
    found = ends(drawn[:, 0] - drawn[:, 1], 0.0)
    interval = stats.ttest_ind(first, second).confidence_interval(0.95)
    half = (interval.high - interval.low) / 2
    assert found == pytest.approx((-half, half), rel=0.06)


def test_two_seeds_of_two_arms_have_the_wide_ends_of_two_degrees() -> None:
    drawn = np.concatenate([draw_seeds([[0.0, 1.0], [0.0, 1.0]], name) for name in "abcd"])
    half = stats.t(2).ppf(0.975) * 0.5**0.5 * (1 / 2 + 1 / 2) ** 0.5
    assert ends(drawn[:, 0] - drawn[:, 1], 0.0) == pytest.approx((-half, half), rel=0.06)


def test_an_arm_with_one_seed_takes_the_whole_spread_of_the_others() -> None:
    drawn = draw_seeds([[0.0, 1.0, 2.0, 3.0, 4.0] * 4, [0.0]])
    assert drawn[:, 1].std() / drawn[:, 0].std() == pytest.approx(20**0.5, rel=0.05)


def test_one_seed_everywhere_moves_nothing() -> None:
    assert (draw_seeds([[0.3], [0.9]]) == 0).all()


def test_the_variances_of_both_levels_add() -> None:
    items = draws([scores([1.0] * 50 + [0.0] * 50)])
    seeds = draw_seeds([[0.5 + 0.1 * (-1) ** number for number in range(40)]], "seeds")
    of_one_seed = 0.01 * 40 / 39  # the sample variance of 40 values that are 0.1 from their mean
    expected = 0.25 / 100 + of_one_seed / 40 * 39 / 37  # that of Student's t with 39 degrees is 39/37
    assert draw_both(items, seeds).var() == pytest.approx(expected, rel=0.06)


def test_the_same_names_give_the_same_draws_and_others_do_not() -> None:
    found = [generator_of(*names).random() for names in (("a", "b"), ("a", "b"), ("ab",), ("b", "a"))]
    assert found[0] == found[1]
    assert len(set(found)) == 3
