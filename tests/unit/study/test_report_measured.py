"""A suite's numbers over rows, on answers that a pencil can count."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from megatron_ext.evaluate.results import Aggregate, Contamination, Interval, Metric, TaskResult
from megatron_ext.study.report.bootstrap import ItemScores
from megatron_ext.study.report.evaluated import Evaluated
from megatron_ext.study.report.measured import Measured, measure_suite, measure_task
from tests.support.evaluation_results import results_of

AGGREGATES = (
    Aggregate(name="math", value=None, rule="mean", of=("sums", "series")),
    Aggregate(name="average", value=None, rule="mean", of=("math", "words")),
)


def task_of(
    name: str, value: float, *, n: int = 10, method: str = "exact", interval: Interval | None = None
) -> TaskResult:
    return TaskResult(
        task=f"verifiable:{name}",
        kind="verifiable",
        name=name,
        domain="general" if name == "words" else "math",
        headline="acc",
        metrics=(Metric(name="acc", value=value, n=n, interval=interval),),
        items=n,
        data_id=name,
        method=method,
        seed=1,
        contamination=Contamination(status="clean"),
    )


def evaluated(replicate: int = 0, *, right: dict[str, int], n: int = 10, method: str = "exact") -> Evaluated:
    """A replicate that has so many of n items right, the first ones."""
    tasks = [task_of(name, found / n, n=n, method=method) for name, found in right.items()]
    results = results_of(*tasks).model_copy(update={"aggregates": AGGREGATES})
    items = tuple(f"{number:03d}" for number in range(n))
    scores = {
        name: ItemScores(items, np.asarray([1.0] * found + [0.0] * (n - found)), np.ones(n))
        for name, found in right.items()
    }
    return Evaluated(replicate, results, scores)


def without_items(task: TaskResult) -> Evaluated:
    return Evaluated(0, results_of(task), {})


def measured(rows: list[list[Evaluated]], name: str) -> Measured:
    return next(one for one in measure_suite("sft", "toy", rows, None) if one.info.name == name)


def test_fine_tunings_of_one_base_are_no_independent_runs() -> None:
    chains = {0: ("base-0", "sft-0"), 1: ("base-1", "sft-1"), 2: ("base-0", "sft-2"), 3: ("base-1", "sft-3")}
    row = [replace(evaluated(number, right={"sums": 2 + 2 * number}), chain=chain) for number, chain in chains.items()]
    found = measure_task("sft", "toy", "sums", [row])
    assert [one.replicates for one in found.families[0]] == [(0, 2), (1, 3)]
    # 0.2 and 0.6 of one base, 0.4 and 0.8 of the other: means 0.4 and 0.6
    assert found.info.seed_degrees == 1
    assert found.info.seed_deviation == pytest.approx(0.1 * math.sqrt(2))


def test_fine_tunings_of_the_only_base_are_runs_of_their_own() -> None:
    row = [replace(evaluated(number, right={"sums": 2}), chain=("base", f"sft-{number}")) for number in (0, 1, 2)]
    families = measure_task("sft", "toy", "sums", [row]).families[0]
    assert [one.replicates for one in families] == [(0,), (1,), (2,)]


def test_what_fine_tunings_share_across_bases_widens_their_difference() -> None:
    """Two recipes behind two bases: both differences are +0.1 with one seed and +0.5 with the other."""
    right = {"x": ((50, 80), (40, 70)), "y": ((40, 30), (30, 20))}
    rows = [
        [
            replace(
                evaluated(seed, right={"sums": found}, n=100),
                chain=(f"first-{seed}", f"{base}-{seed}", f"{name}-{base}-{seed}"),
            )
            for seed, found in enumerate(of_base)
        ]
        for name, of_bases in right.items()
        for base, of_base in enumerate(of_bases)
    ]
    delta = measure_task("sft", "toy", "sums", rows).difference([0, 1], [2, 3])
    assert delta is not None
    assert delta.value == pytest.approx(0.3)
    assert (delta.low or 0) < 0.3 - 12.706 * 0.2 * 0.9  # the t-test of +0.1 and +0.5: 12.7 standard errors of 0.2
    assert (delta.high or 0) > 0.3 + 12.706 * 0.2 * 0.9


def test_a_mean_is_of_means_as_the_suite_makes_it() -> None:
    found = measured([[evaluated(right={"sums": 2, "series": 4, "words": 9})]], "average")
    assert found.value(0) == pytest.approx((0.3 + 0.9) / 2)
    assert found.info.of == ("math", "words")
    assert found.info.items == 30


def test_replicates_are_averaged_and_their_spread_is_kept() -> None:
    rows = [[evaluated(0, right={"sums": 2}), evaluated(1, right={"sums": 4})]]
    found = measure_task("sft", "toy", "sums", rows)
    assert found.values == ({0: 0.2, 1: 0.4},)
    assert found.value(0) == pytest.approx(0.3)
    assert found.info.seed_deviation == pytest.approx(0.2 / 2**0.5)
    assert found.info.seed_degrees == 1


def test_a_difference_is_of_paired_items_and_has_its_sign() -> None:
    rows = [[evaluated(right={"sums": 60}, n=100)], [evaluated(right={"sums": 50}, n=100)]]
    found = measure_task("sft", "toy", "sums", rows)
    delta = found.difference([0], [1])
    assert delta is not None
    assert delta.value == pytest.approx(0.1)
    assert (delta.low, delta.high) == pytest.approx((0.05, 0.16), abs=0.011)  # binomial(100, 0.1), paired
    back = found.difference([1], [0])
    assert back is not None
    assert (back.value, back.low, back.high) == pytest.approx((-delta.value, -(delta.high or 0), -(delta.low or 0)))


def test_a_difference_to_the_mean_of_several_rows() -> None:
    rows = [[evaluated(right={"sums": right})] for right in (8, 2, 4)]
    delta = measure_task("sft", "toy", "sums", rows).difference([0], [1, 2])
    assert delta is not None
    assert delta.value == pytest.approx(0.5)


def test_a_lower_loss_is_better() -> None:
    found = measure_task("sft", "toy", "sums", [[evaluated(right={"sums": 8})], [evaluated(right={"sums": 2})]])
    loss = replace(found, info=found.info.model_copy(update={"is_higher_better": False}))
    delta = loss.difference([1], [0])
    assert delta is not None
    assert delta.value == pytest.approx(0.6)
    assert loss.best_rows() == [1]


def test_a_row_without_results_has_no_number_and_moves_no_other() -> None:
    found = measured([[evaluated(right={"sums": 2, "series": 2, "words": 2})], []], "average")
    assert found.value(1) is None
    assert found.estimate(1) is None
    assert found.difference([0], [1]) is None
    assert found.best_rows() == [0]
    assert found.best_ratios() == {0: 1.0}


def test_a_replicate_that_misses_a_task_has_no_mean() -> None:
    rows = [[evaluated(0, right={"sums": 2, "series": 4, "words": 9}), evaluated(1, right={"sums": 8, "series": 8})]]
    assert measured(rows, "average").values == ({0: pytest.approx(0.6)},)


def test_rows_that_were_counted_otherwise_are_not_compared() -> None:
    rows = [[evaluated(right={"sums": 2})], [evaluated(right={"sums": 8}, method="substring")]]
    found = measure_task("sft", "toy", "sums", rows)
    assert found.difference([1], [0]) is None
    assert not found.are_comparable([0, 1])


def test_without_items_the_interval_of_the_evaluation_is_taken() -> None:
    interval = Interval(low=0.3, high=0.7, method="wilson")
    rows = [[without_items(task_of("sums", 0.5, interval=interval))]]
    found = measure_task("sft", "toy", "sums", rows).estimate(0)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.3, 0.7), abs=0.02)


def test_without_items_and_interval_there_is_none() -> None:
    found = measure_task("sft", "toy", "sums", [[without_items(task_of("sums", 0.5))]]).estimate(0)
    assert found is not None
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_without_items_two_seeds_give_an_interval_of_seeds_alone() -> None:
    one, other = without_items(task_of("sums", 0.5)), replace(without_items(task_of("sums", 0.52)), replicate=1)
    found = measure_task("sft", "toy", "sums", [[one, other]])
    estimate = found.estimate(0)
    assert found.drawn([0]) == "seeds"
    assert estimate is not None
    half = 12.706 * 0.01  # Student's t with one degree of freedom, times the standard error of the mean
    assert (estimate.low, estimate.high) == pytest.approx((0.51 - half, 0.51 + half), rel=0.1)


def test_a_share_is_never_beyond_its_ends() -> None:
    rows = [[evaluated(0, right={"sums": 10}), evaluated(1, right={"sums": 6})]]
    found = measure_task("sft", "toy", "sums", rows).estimate(0)
    assert found is not None
    assert (found.low, found.high) == (0.0, 1.0)  # Student's t with one degree of freedom goes far beyond


def test_a_number_beyond_1_is_no_share_and_its_interval_has_no_ends() -> None:
    reward = task_of("sums", 2.5, interval=Interval(low=2.0, high=3.0, method="wilson"))
    found = measure_task("sft", "toy", "sums", [[without_items(reward)]])
    estimate = found.estimate(0)
    assert (found.info.is_share, found.info.unit) == (False, "")
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx((2.0, 3.0), abs=0.05)


def test_the_main_number_is_the_asked_one_else_the_last_mean() -> None:
    rows = [[evaluated(right={"sums": 2, "series": 4, "words": 9})]]
    for asked, expected in ((None, "average"), ("math", "math"), ("sums", "sums"), ("nothing", "average")):
        mains = [one.info.name for one in measure_suite("sft", "toy", rows, asked) if one.info.is_main]
        assert mains == [expected]


def test_where_nothing_can_be_drawn_nothing_is_counted() -> None:
    rows = [[without_items(task_of("sums", value))] for value in (0.5, 0.5001)]
    found = measure_task("sft", "toy", "sums", rows)
    assert found.drawn([0, 1]) == "nothing"
    assert found.best_ratios() == {}


def test_rows_that_are_equal_in_every_draw_are_the_best_in_half_of_them() -> None:
    rows = [[evaluated(right={"sums": 5})], [evaluated(right={"sums": 5})], [evaluated(right={"sums": 1})]]
    ratios = measure_task("sft", "toy", "sums", rows).best_ratios()
    assert ratios[0] == ratios[1] == pytest.approx(0.5, abs=0.01)


def test_domains_are_means_of_their_tasks() -> None:
    found = measure_suite("sft", "toy", [[evaluated(right={"sums": 2, "series": 4, "words": 9})]], None)
    domains = {one.info.name: one.value(0) for one in found if one.info.role == "domain"}
    assert domains == {"domain:math": pytest.approx(0.3), "domain:general": pytest.approx(0.9)}


def test_the_best_is_counted_in_draws() -> None:
    rows = [[evaluated(right={"sums": 60}, n=100)], [evaluated(right={"sums": 50}, n=100)]]
    ratios = measure_task("sft", "toy", "sums", rows).best_ratios()
    assert ratios[0] > 0.999  # it is never worse on an item
    assert sum(ratios.values()) == pytest.approx(1.0)
