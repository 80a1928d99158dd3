"""Who is slow: for long, against ranks with the same work, and nobody else."""

from __future__ import annotations

import pytest

from megatron_ext.training.slow_ranks import SLOW_RATIO, WINDOW_STEPS, Place, SlowRanks

FOUR = [Place("node-a", 0), Place("node-a", 0), Place("node-b", 0), Place("node-b", 0)]


def judged(ranks: SlowRanks, *steps: tuple[float, ...]) -> dict[int, float]:
    """The slow ranks of a window of these steps over and over."""
    found = [ranks.add(steps[number % len(steps)]) for number in range(WINDOW_STEPS)]
    assert not any(found[:-1])
    return found[-1]


def test_a_rank_that_stays_slow_is_named_with_its_host_and_its_ratio() -> None:
    ranks = SlowRanks(FOUR)
    slow = judged(ranks, (1.0, 1.0, 1.0, 1.5))
    assert slow == {3: 1.5}
    assert ranks.sentence(slow, 50).splitlines() == [
        "WARNING: step 50: slow ranks, by their own part of the last 50 steps",
        "  rank 3 (node-b): 1.500 s, 1.50 times its peers; p95 1.500 s",
    ]


def test_a_rank_is_slow_from_the_stated_ratio_on() -> None:
    ranks = SlowRanks(FOUR)
    assert judged(ranks, (1.0, 1.0, 1.24, 1.25)) == {3: 1.25}
    assert [line.split()[0] for line in ranks.report() if line.endswith("1 of 1")] == ["3"]


def test_of_an_even_number_of_peers_the_faster_half_is_the_measure() -> None:
    assert judged(SlowRanks([Place("node-a", 0)] * 5), (1.0, 1.0, 2.0, 2.0, 2.0)) == {2: 2.0, 3: 2.0, 4: 2.0}


def test_a_warning_has_the_times_of_its_own_window_the_slowest_rank_first_and_eight_at_most() -> None:
    ranks = SlowRanks([Place("node-a", 0)] * 30)
    judged(ranks, (1.0,) * 30)
    slow = judged(ranks, tuple(1.0 if rank < 20 else rank / 10 for rank in range(30)))
    assert sorted(slow) == list(range(20, 30))
    lines = ranks.sentence(slow, 100).splitlines()
    assert [line.split()[1] for line in lines[1:9]] == ["29", "28", "27", "26", "25", "24", "23", "22"]
    assert "2.900 s, 2.90 times its peers" in lines[1]
    assert lines[9:] == ["  and 2 ranks more"]


@pytest.mark.parametrize(
    "steps",
    [
        [(1.0, 1.0, 1.0, 1.2)],  # a little
        [(1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 9.0), (1.0, 1.0, 1.0, 1.0)],  # every third step
        [(1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 3.0, 4.0), (4.0, 1.0, 2.0, 3.0), (3.0, 4.0, 1.0, 2.0), (2.0, 3.0, 4.0, 1.0)],
        [(1.0, 1.0, 1.0, 1.0), (7.0, 7.0, 7.0, 7.0)],  # all together
    ],
)
def test_without_a_rank_that_stays_slow_nobody_is_accused(steps: list[tuple[float, ...]]) -> None:
    ranks = SlowRanks(FOUR)
    assert judged(ranks, *steps) == {}
    assert "no slow rank" in ranks.report()[0]


def test_ranks_of_another_pipeline_stage_are_no_measure() -> None:
    stages = [Place("node-a", 0), Place("node-a", 0), Place("node-b", 1), Place("node-b", 1)]
    assert judged(SlowRanks(stages), (1.0, 1.0, 2.0, 2.0)) == {}
    assert judged(SlowRanks(stages), (1.0, 1.0, 2.0, 3.0)) == {3: 1.5}
    assert judged(SlowRanks([Place("node-a", 0), Place("node-b", 1)]), (1.0, 9.0)) == {}


def test_the_table_at_the_end_has_every_window_and_the_slowest_first() -> None:
    ranks = SlowRanks(FOUR[1:3])
    judged(ranks, (1.0, 2.0))
    judged(ranks, (1.0, 1.0))
    judged(ranks, (1.0, 1.5))
    assert ranks.report() == [
        f"rank times: 150 steps, 3 windows; 1 slow rank ({SLOW_RATIO} times the median of its peers)",
        "   rank  host                   median s      p95 s  x peers  slow in",
        "      1  node-b                    1.500      2.000     1.50  2 of 3",
        "      0  node-a                    1.000      1.000     0.67  0 of 3",
    ]


def test_in_the_table_stand_first_those_that_were_slow_most_often_then_those_that_took_longest() -> None:
    ranks = SlowRanks([Place("node-a", 0)] * 10)
    others = (1.2, 1.1, 1.09, 1.08, 1.07, 1.06, 1.05, 1.04, 1.0)
    for first in (1.5, 1.0, 1.0):
        judged(ranks, (first, *others))
    head, _, *rows, more = ranks.report()
    assert "; 1 slow rank (" in head
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3", "4", "5", "6", "7"]
    assert [row.split()[-3:] for row in rows[:2]] == [["1", "of", "3"], ["0", "of", "3"]]
    assert more == "  and 2 ranks more, 0.97 times its peers at most"  # 1.04 / 1.07


@pytest.mark.parametrize(("steps", "said"), [(9, "1 window; no slow rank"), (10, "2 windows; 1 slow rank")])
def test_what_is_left_at_the_end_is_a_window_from_ten_steps_on(steps: int, said: str) -> None:
    ranks = SlowRanks(FOUR)
    judged(ranks, (1.0, 1.0, 1.0, 1.0))
    for _ in range(steps):
        ranks.add((1.0, 1.0, 1.0, 2.0))
    assert ranks.report()[0].startswith(f"rank times: {50 + steps} steps, {said} (")


def test_the_95th_percentile_is_reached_by_a_twentieth_of_the_steps() -> None:
    ranks = SlowRanks(FOUR[:2])
    for number in range(WINDOW_STEPS):
        ranks.add((1.0 if number < 48 else 9.0, 1.0 if number < 47 else 5.0))
    assert [line.split()[3] for line in ranks.report() if line.split()[0] == "0"] == ["1.000"]
    (row,) = (line.split() for line in ranks.report() if line.split()[0] == "1")
    assert row[2:4] == ["1.000", "5.000"]


def test_a_handful_of_steps_accuses_nobody() -> None:
    ranks = SlowRanks(FOUR[:2])
    for _ in range(5):
        ranks.add((1.0, 3.0))
    assert ranks.report()[0].startswith("rank times: 5 steps, 1 window; no slow rank")
    assert SlowRanks(FOUR).report() == []
