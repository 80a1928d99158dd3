"""What is drawn, how often, and that it hangs on seed and content alone."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from data_tools.drawing import Drawn, Pool, draw
from data_tools.permutation import keyed_choices


def of_source(rounds: list[Drawn], source: int) -> list[list[int]]:
    """The conversations of one source in each round."""
    return [part.conversation[part.source == source].tolist() for part in rounds]


def test_a_source_read_once_gives_distinct_conversations() -> None:
    (drawn,) = of_source(draw([Pool("a", size=100, count=40)], seed=1), 0)
    assert len(set(drawn)) == len(drawn) == 40
    assert drawn != sorted(drawn)


def test_passes_come_one_after_another_and_each_holds_all() -> None:
    rounds = of_source(draw([Pool("a", size=7, count=21)], seed=1), 0)
    assert [sorted(part) for part in rounds] == [list(range(7))] * 3
    assert rounds[0] != rounds[1]


def test_no_round_holds_a_conversation_twice_where_passes_end_inside_rounds() -> None:
    rounds = of_source(draw([Pool("a", size=7, count=17), Pool("b", size=2, count=10)], seed=3), 0)
    assert [len(part) for part in rounds] == [3, 3, 4, 3, 4]
    assert all(len(set(part)) == len(part) for part in rounds)
    for seed in range(20):  # the last round has the last one of a pass and the first of the next
        short = of_source(draw([Pool("a", size=3, count=7), Pool("b", size=1, count=4)], seed=seed), 0)
        assert [len(set(part)) for part in short] == [len(part) for part in short] == [1, 2, 2, 2]
    times = Counter(number for part in rounds for number in part)
    assert sorted(times.values()) == [2] * 4 + [3] * 3


def test_twice_as_many_new_ones_hold_the_first_ones() -> None:
    once, twice = (of_source(draw([Pool("a", size=50, count=count)], seed=5), 0)[0] for count in (20, 40))
    assert twice[:20] == once


def test_other_sources_and_their_order_change_nothing_of_what_a_source_gives_within_a_pass() -> None:
    a, b = Pool("a", size=50, count=20), Pool("b", size=30, count=10)
    alone = of_source(draw([a], seed=5), 0)
    assert of_source(draw([b, a], seed=5), 1) == alone
    assert of_source(draw([Pool("c", size=50, count=20)], seed=5), 0) != alone
    assert of_source(draw([a], seed=6), 0) != alone


def test_beyond_a_pass_other_sources_may_change_which_come_once_more_and_never_how_many() -> None:
    """6 of 5 are one twice and four once, alone in 2 rounds and beside a source of 6 passes in 6."""
    a, b = Pool("a", size=5, count=6), Pool("b", size=2, count=12)
    which = []
    for seed in range(20):
        found = [Counter(chain(*of_source(draw(pools, seed=seed), 0))) for pools in ([a], [a, b])]
        assert [sorted(times.values()) for times in found] == [[1, 1, 1, 1, 2]] * 2
        which.append([times.most_common(1)[0][0] for times in found])
    assert any(alone != beside for alone, beside in which)
    assert any(alone == beside for alone, beside in which)


def test_with_replacement_some_come_again_before_others_came_once() -> None:
    (drawn,) = of_source(draw([Pool("a", size=100, count=100)], rule="with_replacement", seed=1), 0)
    assert len(drawn) == 100
    assert 50 < len(set(drawn)) < 75  # 63 expected: 100 x (1 - 1/e)


def test_choices_are_even() -> None:
    counts = np.bincount(keyed_choices(30_000, below=3, key="even"), minlength=3)
    assert counts.sum() == 30_000
    assert counts == pytest.approx([10_000] * 3, abs=300)  # three standard deviations are 245


def test_a_source_that_gives_nothing_takes_part_in_no_round() -> None:
    rounds = draw([Pool("a", size=0, count=0), Pool("b", size=3, count=3)], seed=0)
    assert [part.source.tolist() for part in rounds] == [[1, 1, 1]]
