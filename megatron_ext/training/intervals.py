"""Where a mean that was measured on some items may lie for others like them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95
NORMAL_95 = 1.959964
"""Half the width of 95 % of a normal distribution, in standard deviations."""
_RESAMPLES = 2_000
_MOST_DRAWN = 1 << 22
"""Indices drawn at once: 34 MB."""


def wilson_interval(rate: float, count: int) -> tuple[float, float]:
    """The ends of Wilson's 95 % interval, which holds for small numbers and near 0 and 1 too.

    For a mean of values in [0, 1] that are not all 0 or 1 it is wider than it need be.
    Source: E. B. Wilson, JASA 22 (1927), 209-212, with z = 1.96.

    Args:
        rate: Mean of the items.
        count: Items, at least 1.

    >>> [round(end, 3) for end in wilson_interval(0.25, 4)]
    [0.046, 0.699]
    """
    z = NORMAL_95
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    values: Sequence[float], *, seed: int, weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the mean over items drawn with replacement.

    An item goes with all its samples, so that several answers to one question do not count as several questions.
    Source: B. Efron, Annals of Statistics 7 (1979), 1-26.

    Args:
        values: Of each item; of several samples their mean, or what is estimated from them.
        seed: Of the 2,000 resamples.
        weights: Of each item: the sum of values is divided by that of weights, as in nats by tokens; None: 1 each.

    >>> bootstrap_interval([0.5, 0.5, 0.5], seed=1)
    (0.5, 0.5)
    """
    found = np.asarray(values, np.float64)
    divide = np.ones_like(found) if weights is None else np.asarray(weights, np.float64)
    draw = np.random.default_rng(seed)
    at_once = max(1, _MOST_DRAWN // len(found))
    means = []
    for done in range(0, _RESAMPLES, at_once):
        drawn = draw.integers(0, len(found), (min(at_once, _RESAMPLES - done), len(found)))
        means.append(found[drawn].sum(1) / divide[drawn].sum(1))
    low, high = np.percentile(np.concatenate(means), [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return float(low), float(high)
