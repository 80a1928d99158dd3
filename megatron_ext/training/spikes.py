"""Loss spikes: said once each, when they begin."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

WINDOW_STEPS = 50
FEWEST_STEPS = 10
"""Below this the median says nothing yet."""


class SpikeWatch:
    """Compares each loss with the median of the `WINDOW_STEPS` steps before it.

    A loss that stays high becomes the median after half a window: then the spike is over, and a level.

    Args:
        nats: How far above the median a loss is a spike; 0 watches nothing.
        losses: Of the steps before, oldest first.
    """

    def __init__(self, nats: float, losses: Iterable[float] = ()) -> None:
        self._nats = nats
        self._losses = deque(losses, maxlen=WINDOW_STEPS)
        self._is_in_spike = False

    def look(self, loss: float) -> tuple[float | None, bool]:
        """Takes the next step's finite loss.

        Returns:
            Nats above the median, None if it is no spike; and whether a spike begins with it.
        """
        above = None
        if self._nats and len(self._losses) >= FEWEST_STEPS:
            above = loss - statistics.median(self._losses)
        is_spike = above is not None and above > self._nats
        begins = is_spike and not self._is_in_spike
        self._is_in_spike = is_spike
        self._losses.append(loss)
        return (above if is_spike else None), begins
