"""What each rank does by itself in a step, so that the one for which all wait can be found.

Counted is the wall time of reading and of forward and backward passes, up to where the rank arrives at the
reduction of gradients over data-parallel ranks; the wait for others after reading is not counted. Ranks of one
model replica (TP, PP, CP) wait for each other inside forward and backward: there a slow rank shows as a slow
replica. On a GPU the clock waits for the device where it stops, which the rest of the step hides: timed steps
are somewhat slower, and nothing is timed unless `logging.rank_times` asks for it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from megatron_ext.runtime.device import device, has_gpu


class StepClock:
    """A stopwatch of this rank; a clock that is off does nothing."""

    def __init__(self, *, is_on: bool) -> None:
        self._is_on = is_on
        self._seconds = self._began = 0.0

    def restart(self) -> None:
        """Starts at zero."""
        self._seconds = 0.0
        self.go_on()

    def go_on(self) -> None:
        """Counts from here on."""
        if self._is_on:
            self._began = time.perf_counter()

    def stop(self) -> None:
        """Counts until here, when the device has done what it was given."""
        if self._is_on:
            if has_gpu():
                torch.accelerator.synchronize()
            self._seconds += time.perf_counter() - self._began

    def stopping_before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which first stops this clock."""
        if not self._is_on:
            return function

        def stop_and_call(*args: Any, **kwargs: Any) -> Any:
            self.stop()
            return function(*args, **kwargs)

        return stop_and_call

    def of_all_ranks(self) -> tuple[float, ...]:
        """The seconds of each rank; empty when the clock is off. All ranks must call this."""
        if not self._is_on:
            return ()
        seconds = torch.zeros(dist.get_world_size(), dtype=torch.float64, device=device())
        seconds[dist.get_rank()] = self._seconds
        dist.all_reduce(seconds)
        return tuple(seconds.tolist())


def slowest(rank_seconds: tuple[float, ...]) -> dict[str, float]:
    """The slowest rank against the median, which is the faster of the two in the middle.

    >>> slowest((1.0, 1.0, 3.0, 2.0))
    {'slowest_rank': 2, 'slowest_s': 3.0, 'median_s': 1.0, 'ratio': 3.0}
    """
    most, median = max(rank_seconds), statistics.median_low(rank_seconds)
    rank = rank_seconds.index(most)
    return {"slowest_rank": rank, "slowest_s": most, "median_s": median, "ratio": most / median}
