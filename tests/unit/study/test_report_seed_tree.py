"""Spreads of seeds where arms share stages, against what scipy, or a pencil, says of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from megatron_ext.study.report.bootstrap import Array, ends, generator_of
from megatron_ext.study.report.seed_tree import SeedRun, SeedTree, contrast_draws

LUCK = (10.0, 20.0, 60.0)
"""What the first stage of each replicate adds to all arms."""


def arms_of(*own: tuple[float, ...], luck: tuple[float, ...] = LUCK) -> list[list[SeedRun]]:
    """Arms whose replicates share their first stages."""
    return [
        [
            SeedRun(luck[seed] + value, (f"first-{seed}", f"arm-{arm}-{seed}", f"sft-{arm}-{seed}"))
            for seed, value in enumerate(row)
        ]
        for arm, row in enumerate(own)
    ]


def drawn(rows: list[list[SeedRun]]) -> Array:
    return SeedTree(rows).draw(generator_of("test"))


def half_of(draws: Array) -> float:
    low, high = ends(draws, 0.0)
    return (high - low) / 2


def test_arms_that_share_first_stages_are_compared_as_by_the_paired_t_test() -> None:
    rows = arms_of((3.0, 2.0, 2.5), (1.0, 0.5, 0.0))
    interval = stats.ttest_rel(*([run.value for run in row] for row in rows)).confidence_interval(0.95)
    draws = drawn(rows)
    assert half_of(draws[:, 0] - draws[:, 1]) == pytest.approx((interval.high - interval.low) / 2, rel=0.06)


def test_more_arms_give_differences_more_degrees_of_freedom() -> None:
    tree = SeedTree(arms_of((1.0, 0.0), (0.0, 0.0), (0.0, 1.0), luck=(0.0, 40.0)))
    # Residuals of arms and replicates: +-0.5 in the first and the last row; (3 - 1)(2 - 1) degrees.
    assert tree.spreads[1] == tree.paired
    assert tree.paired is not None
    assert (tree.paired.deviation, tree.paired.degrees) == (pytest.approx((4 * 0.25 / 2) ** 0.5), 2)


def test_an_arm_alone_has_the_luck_of_its_first_stage_and_one_degree() -> None:
    tree = SeedTree(arms_of((0.0, 0.0), (2.0, 2.0), luck=(0.0, 10.0)))
    assert tree.spreads[0] is not None
    assert (tree.spreads[0].deviation, tree.spreads[0].degrees) == (pytest.approx(50**0.5), 1)
    draws = tree.draw(generator_of("test"))
    assert half_of(draws[:, 0]) == pytest.approx(12.706 * 5.0, rel=0.06)  # t of one degree, standard error 10/2
    assert (draws[:, 0] == draws[:, 1]).all()


def test_fine_tunings_of_one_base_do_not_differ_by_its_luck() -> None:
    bases = {"a": (0.0, 8.0, 3.0), "b": (5.0, 1.0, 0.0)}
    sft = {"x": (0.2, 0.0, 0.1), "y": (0.0, 0.1, 0.0)}
    rows = [
        [
            SeedRun(LUCK[seed] + of_base[seed] + own[seed], (f"first-{seed}", f"{base}-{seed}", f"{base}{name}-{seed}"))
            for seed in range(3)
        ]
        for base, of_base in bases.items()
        for name, own in sft.items()
    ]
    draws = drawn(rows)
    within, across = draws[:, 0] - draws[:, 1], draws[:, 0] - draws[:, 2]
    one = stats.ttest_rel(sft["x"], sft["y"]).confidence_interval(0.95)  # two bases: t of 4 degrees instead of 2
    assert half_of(within) == pytest.approx((one.high - one.low) / 2 * stats.t(4).ppf(0.975) / 4.303, rel=0.06)
    two = stats.ttest_rel(bases["a"], bases["b"]).confidence_interval(0.95)
    assert half_of(across) == pytest.approx((two.high - two.low) / 2, rel=0.08)


def test_unrelated_arms_have_one_level() -> None:
    tree = SeedTree([[SeedRun(1.0, ("a-0",)), SeedRun(2.0, ("a-1",))], [SeedRun(5.0), SeedRun(5.0)]])
    assert [one and one.degrees for one in tree.spreads] == [2]
    assert tree.paired is None


def test_a_longer_arm_beside_an_unrelated_one_has_no_luck_of_its_last_stages_alone() -> None:
    longer = [SeedRun(value, (f"first-{seed}", f"next-{seed}")) for seed, value in enumerate((1.0, 3.0))]
    tree = SeedTree([longer, [SeedRun(0.0, ("other-0",)), SeedRun(0.0, ("other-1",))]])
    # Squares of first stages: 2 of the one and 0 of the other, with a degree each.
    assert [one and (one.deviation, one.degrees) for one in tree.spreads] == [(1.0, 2), None]


def test_a_stage_that_all_replicates_share_has_no_luck_to_draw() -> None:
    rows = arms_of((3.0, 2.0, 2.5), (1.0, 0.5, 0.0))
    below_one_base = [[SeedRun(run.value, ("base", *run.path)) for run in row] for row in rows]
    assert SeedTree(below_one_base).spreads == SeedTree(rows).spreads


def test_an_arm_that_ends_where_others_go_on_shares_their_luck() -> None:
    going_on = [
        SeedRun(LUCK[seed] + own, (f"first-{seed}", f"next-{seed}")) for seed, own in enumerate((1.0, 2.0, 1.5))
    ]
    ending = [SeedRun(LUCK[seed], (f"first-{seed}",)) for seed in range(3)]
    draws = drawn([going_on, ending])
    interval = stats.ttest_1samp([1.0, 2.0, 1.5], 0.0).confidence_interval(0.95)
    assert half_of(draws[:, 0] - draws[:, 1]) == pytest.approx((interval.high - interval.low) / 2, rel=0.06)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_arms_that_miss_a_replicate_are_no_part_of_spreads(place: int) -> None:
    rows = arms_of((3.0, 2.0, 2.5), (1.0, 0.5, 0.0), (7.0, 0.0, 1.0))
    del rows[place][1:]
    others = [row for row in rows if row is not rows[place]]
    assert SeedTree(rows).spreads[:2] == SeedTree(others).spreads[:2]


def test_where_no_two_arms_have_all_replicates_differences_take_the_whole_spread() -> None:
    rows = arms_of((0.0, 0.0), (2.0, 2.0), luck=(0.0, 10.0))
    del rows[1][1:]
    draws = drawn(rows)
    # A first stage more on one side, variance 1/4 + 1/4; two arms' own luck, 1/2 + 1. With one degree scales add.
    half = 12.706 * 50**0.5 * (0.5**0.5 + 1.5**0.5)
    assert half_of(draws[:, 0] - draws[:, 1]) == pytest.approx(half, rel=0.08)


def test_a_contrast_by_replicate_is_the_paired_t_test() -> None:
    rows = arms_of((3.0, 2.0, 2.5), (1.0, 0.5, 0.0), (0.0, 4.0, 1.0))
    draws = contrast_draws(rows[:1], rows[1:], generator_of("test"))
    values = np.asarray([[run.value for run in row] for row in rows])
    interval = stats.ttest_rel(values[0], values[1:].mean(0)).confidence_interval(0.95)
    assert draws is not None
    assert half_of(draws) == pytest.approx((interval.high - interval.low) / 2, rel=0.06)


def test_arms_that_share_no_first_stage_have_no_contrast_by_replicate() -> None:
    rows = [[SeedRun(1.0, ("a-0",)), SeedRun(2.0, ("a-1",))], [SeedRun(5.0, ("b-0",)), SeedRun(5.0, ("b-1",))]]
    assert contrast_draws(rows[:1], rows[1:], generator_of("test")) is None


def test_one_replicate_everywhere_moves_nothing() -> None:
    tree = SeedTree(arms_of((3.0,), (1.0,)))
    assert (tree.draw(generator_of("test")) == 0).all()
    assert tree.spreads == [None, None, None]
    assert contrast_draws(arms_of((3.0,)), arms_of((1.0,)), generator_of("test")) is None
