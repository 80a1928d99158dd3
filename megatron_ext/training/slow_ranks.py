"""Ranks that are slow for long: what `logging.rank_times` measures (rank_times.py), judged over windows of steps.

A rank is compared, step by step, with its peers: the other ranks of its pipeline stage, which have the same work.
It is slow in a window when it takes `SLOW_RATIO` times the median of its peers in the median step. So one long
step accuses nobody, nor does a step that is long for all. A rank without peers is never accused.
"""

from __future__ import annotations

import math
import socket
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from data_tools.quantities import counted

WINDOW_STEPS = 50

_FEWEST_STEPS = 10
"""A window of fewer steps, at the end of a run, accuses nobody."""

SLOW_RATIO = 1.25
"""Every step waits for its slowest rank: such a one costs a fifth of the machine."""

_LISTED = 8


@dataclass(frozen=True)
class Place:
    """Where a rank runs, and which part of the model it has."""

    host: str
    pipeline_stage: int


@dataclass(frozen=True)
class RankTimes:
    """A rank in one window.

    Attributes:
        median_s: Its own time in the median step, in seconds.
        p95_s: In the slowest twentieth of the steps it took at least this long.
        ratio: Its own time over the median of its peers', in the median step; 1 without peers.
    """

    median_s: float
    p95_s: float
    ratio: float


def places_of_ranks(groups: ProcessGroupCollection) -> tuple[Place, ...]:
    """The place of every rank. All ranks must call this."""
    places: list[Place] = [Place("", 0)] * dist.get_world_size()
    dist.all_gather_object(places, Place(socket.gethostname(), groups.pp.rank()))
    return tuple(places)


class SlowRanks:
    """Judges ranks; lives on the main rank.

    Args:
        places: Of every rank.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._stages: dict[int, list[int]] = {}
        for rank, place in enumerate(places):
            self._stages.setdefault(place.pipeline_stage, []).append(rank)
        self._window: list[tuple[float, ...]] = []
        self._windows: list[list[RankTimes]] = []
        self._num_steps = 0

    def add(self, rank_seconds: tuple[float, ...]) -> dict[int, float]:
        """Takes a step's own times of all ranks; gives the ratios of slow ranks where it ends a window."""
        self._window.append(rank_seconds)
        self._num_steps += 1
        return self._end_window() if len(self._window) == WINDOW_STEPS else {}

    def sentence(self, slow: dict[int, float], step: int) -> str:
        """The warning of a window that ends with `step`."""
        worst = sorted(slow, key=lambda rank: -slow[rank])
        times = self._windows[-1]
        named = [
            f"  rank {rank} ({self._places[rank].host}): {times[rank].median_s:.3f} s, {slow[rank]:.2f} times its "
            f"peers; p95 {times[rank].p95_s:.3f} s"
            for rank in worst[:_LISTED]
        ]
        more = [f"  and {len(worst) - _LISTED} ranks more"] if worst[_LISTED:] else []
        return "\n".join(
            [f"WARNING: step {step}: slow ranks, by their own part of the last {WINDOW_STEPS} steps", *named, *more]
        )

    def report(self) -> list[str]:
        """The table for the end of a run; the slowest first."""
        if len(self._window) >= _FEWEST_STEPS or not self._windows:
            self._end_window()
        if not self._windows:
            return []
        rows = sorted(map(self._row, range(len(self._places))), key=lambda row: (-row[0], -row[1].ratio))
        num_windows, num_slow = len(self._windows), sum(times_slow > 0 for times_slow, _, _ in rows)
        lines = [
            f"rank times: {counted(self._num_steps, 'step')}, {counted(num_windows, 'window')}; "
            + (counted(num_slow, "slow rank") if num_slow else "no slow rank")
            + f" ({SLOW_RATIO} times the median of its peers)",
            f"  {'rank':>5}  {'host':<20}  {'median s':>9}  {'p95 s':>9}  {'x peers':>7}  slow in",
        ]
        for times_slow, times, rank in rows[:_LISTED]:
            lines.append(
                f"  {rank:>5}  {self._places[rank].host:<20}  {times.median_s:>9.3f}  {times.p95_s:>9.3f}  "
                f"{times.ratio:>7.2f}  {times_slow} of {num_windows}"
            )
        if rows[_LISTED:]:
            lines.append(
                f"  and {len(rows) - _LISTED} ranks more, {rows[_LISTED][1].ratio:.2f} times its peers at most"
            )
        return lines

    def _end_window(self) -> dict[int, float]:
        steps, self._window = self._window, []
        if not steps:
            return {}
        ratios = [self._ratios(step) for step in steps]
        self._windows.append(
            [
                _judged(times, to_peers)
                for times, to_peers in zip(zip(*steps, strict=True), zip(*ratios, strict=True), strict=True)
            ]
        )
        return {rank: times.ratio for rank, times in enumerate(self._windows[-1]) if times.ratio >= SLOW_RATIO}

    def _ratios(self, step: tuple[float, ...]) -> list[float]:
        """The time of every rank over the median of its peers'."""
        ordered = {stage: sorted(step[rank] for rank in ranks) for stage, ranks in self._stages.items()}
        medians = (
            _median_of_others(ordered[place.pipeline_stage], mine)
            for place, mine in zip(self._places, step, strict=True)
        )
        return [mine / median for mine, median in zip(step, medians, strict=True)]

    def _row(self, rank: int) -> tuple[int, RankTimes, int]:
        """In how many windows it was slow, and its times over all of them."""
        times = [window[rank] for window in self._windows]
        overall = RankTimes(
            statistics.median_low(one.median_s for one in times),
            max(one.p95_s for one in times),
            statistics.median(one.ratio for one in times),
        )
        is_judged = self._num_steps >= _FEWEST_STEPS
        return (sum(one.ratio >= SLOW_RATIO for one in times) if is_judged else 0), overall, rank


def _judged(times: Sequence[float], ratios: Sequence[float]) -> RankTimes:
    p95 = sorted(times)[math.ceil(0.95 * len(times)) - 1]
    return RankTimes(statistics.median_low(times), p95, statistics.median(ratios))


def _median_of_others(ordered: list[float], mine: float) -> float:
    """The lower median of sorted values without one that is `mine`; `mine` where there is no other.

    >>> _median_of_others([1.0, 4.0], 1.0), _median_of_others([1.0, 2.0, 4.0], 4.0), _median_of_others([3.0], 3.0)
    (4.0, 1.0, 3.0)
    """
    if len(ordered) == 1:
        return mine
    middle = (len(ordered) - 2) // 2
    return ordered[middle + (middle >= bisect_left(ordered, mine))]
