"""Right answers counted by a pencil: pass@k, averages, and their intervals."""

import itertools
import math

import pytest

from megatron_ext.evaluate.estimators import answer_metrics, mean_metric, pass_at_k
from megatron_ext.training.intervals import bootstrap_interval, wilson_interval


@pytest.mark.parametrize(("num_samples", "num_right"), list(itertools.product([1, 2, 5], [0, 1, 2, 5])))
def test_pass_at_k_is_the_share_of_choices_of_k_answers_with_a_right_one(num_samples: int, num_right: int) -> None:
    if num_right > num_samples:
        return
    answers = [place < num_right for place in range(num_samples)]
    for k in range(1, num_samples + 1):
        choices = list(itertools.combinations(answers, k))
        assert pass_at_k(num_samples, num_right, k) == pytest.approx(sum(map(any, choices)) / len(choices), abs=1e-15)


def test_pass_at_k_of_many_answers_is_what_the_binomials_say() -> None:
    exact = 1 - math.comb(20_000 - 3, 5_000) / math.comb(20_000, 5_000)
    assert pass_at_k(20_000, 3, 5_000) == pytest.approx(exact, rel=1e-12)


def test_answers_give_their_average_and_pass_at_powers_of_two_up_to_all() -> None:
    metrics = answer_metrics([3, 0, 1], 3, seed=1)
    assert [(metric.name, metric.n) for metric in metrics] == [("avg@3", 3), ("pass@2", 3), ("pass@3", 3)]
    # pass@2 of 3 answers: 3 right 1; none right 0; one right 1 - C(2,2)/C(3,2) = 2/3
    assert [metric.value for metric in metrics] == pytest.approx([4 / 9, 5 / 9, 2 / 3], abs=1e-15)


def test_one_answer_each_gives_its_average_alone_in_wilsons_interval() -> None:
    (metric,) = answer_metrics([1, 0, 0, 0], 1, seed=1)
    assert metric.interval is not None
    assert (metric.name, metric.value, metric.interval.method) == ("avg@1", 0.25, "Wilson, over items")
    # centre (1/4 + z²/8) / (1 + z²/4), half z sqrt(3/64 + z²/64) / (1 + z²/4), z² = 3.8415
    assert (metric.interval.low, metric.interval.high) == pytest.approx((0.045587, 0.699358), abs=1e-6)


def test_items_that_are_all_alike_do_not_give_an_interval_without_width() -> None:
    metric = mean_metric("avg@4", [0.0, 0.0, 0.0], num_samples=4, seed=1)
    assert metric.interval is not None
    assert metric.interval.low == 0.0
    assert metric.interval.high == pytest.approx(wilson_interval(0.0, 3)[1])
    assert metric.interval.high > 0.5


def test_several_answers_to_an_item_do_not_count_as_several_items() -> None:
    by_item = bootstrap_interval([1.0, 0.0] * 8, seed=1)  # 16 items, whatever the number of answers to each
    metric = mean_metric("avg@4", [1.0, 0.0] * 8, num_samples=4, seed=1)
    assert metric.interval is not None
    assert (metric.interval.low, metric.interval.high) == by_item
    # a mean of 16 coins has the deviation 0.5 / 4: two of them on each side, but for the discreteness of sixteenths
    assert by_item == pytest.approx((0.25, 0.75), abs=1 / 16)


def test_a_bootstrap_divides_by_the_weights_of_the_items_drawn() -> None:
    assert bootstrap_interval([2.0, 20.0, 6.0], weights=[1.0, 10.0, 3.0], seed=3) == (2.0, 2.0)


def test_the_same_seed_draws_the_same_bootstrap() -> None:
    values = [place % 7 / 6 for place in range(40)]
    assert bootstrap_interval(values, seed=5) == bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)
