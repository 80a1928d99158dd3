"""Where a mean may lie for other items and other seeds: draws that all arms share, so that differences are paired.

Two levels, 2,000 draws of the first and 10,000 of the second:

- **items** with replacement, the same ones for all arms that answered the same items (B. Efron, Annals of Statistics 7
  (1979), 1-26). An item goes with all its answers.
- **seeds** from Student's t with the spread that replicates of one arm have, pooled over arms: two or three values
  cannot be resampled. Resampling two seeds gives the ends x1 and x2, and these hold the truth in one case of two
  (P(|t| < 1) with one degree of freedom is 1/2). Pooled over arms the degrees are the sum of (seeds - 1), and the
  interval of a difference with no item noise is that of the t-test with pooled variance (Student, Biometrika 6 (1908),
  1-25; pooled over groups: R. A. Fisher, Statistical Methods for Research Workers (1925), section 24.1). What arms
  share moves them together and leaves their difference alone: `seed_tree.py`.

With one seed in every arm nothing is known of other seeds, and the draws are of items alone: the report says so. The
noise of sampled answers is in both levels, so that with several seeds intervals are a little too wide, never too narrow
for that reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ITEM_RESAMPLES = 2_000
DRAWS = 10_000
"""Of seeds; each resample of items stands in five of them. Student's t has wide ends with few degrees of freedom: with
2 of them 2,000 draws place the ends of an interval to 8 % of its half, 10,000 to 4 %; with one 10,000 to 6 %."""

LEVEL = 0.95
_MOST_DRAWN = 1 << 22
"""Indices drawn at once: 34 MB."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ItemScores:
    """What one evaluation found of the items of one task.

    Attributes:
        items: Ids, sorted.
        scores: Of each; of several answers their mean, of a text its nats.
        weights: What the sum of scores is divided by: 1 each, or the tokens of a text.
    """

    items: tuple[str, ...]
    scores: Array
    weights: Array

    @property
    def mean(self) -> float:
        """Sum of scores over sum of weights."""
        return float(self.scores.sum() / self.weights.sum())


@dataclass(frozen=True)
class SeedSpread:
    """How far replicates of one arm lie from each other.

    Attributes:
        deviation: Standard deviation of one replicate, pooled over arms.
        degrees: Degrees of freedom: the sum over arms of seeds - 1.
    """

    deviation: float
    degrees: int


def generator_of(*names: str) -> np.random.Generator:
    """A generator of its own for each name: a report made twice is the same, whatever else stands in it."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def draw_items(arms: Sequence[Sequence[ItemScores]], draw: np.random.Generator) -> Array:
    """Means over items that are drawn with replacement.

    Where all items of an arm are alike, all right or all wrong, resampling would say that nothing else can be: its
    means are drawn from Jeffreys' beta distribution instead (Brown, Cai and DasGupta, Statistical Science 16 (2001),
    101-133); those of arms that are alike have the same draws, each in an order of its own, and so the same interval.

    Args:
        arms: Of each arm its replicates, at least one.
        draw: Of the resamples.

    Returns:
        [resamples, arms], the mean of an arm's replicates.
    """
    columns = [(arm, one) for arm, replicates in enumerate(arms) for one in replicates]
    drawn = np.zeros((ITEM_RESAMPLES, len(arms)))
    for items in dict.fromkeys(one.items for _, one in columns):
        same = [(arm, one) for arm, one in columns if one.items == items]
        means = _resampled([one for _, one in same], draw)
        for at, (arm, _) in enumerate(same):
            drawn[:, arm] += means[:, at] / len(arms[arm])
    alike: dict[tuple[int, int], Array] = {}
    for arm, replicates in enumerate(arms):
        if (all_right := _all_alike(replicates)) is not None:
            items_alike = len(replicates[0].items)
            counts = (items_alike, 0) if all_right else (0, items_alike)
            if counts not in alike:
                alike[counts] = draw.beta(counts[0] + 0.5, counts[1] + 0.5, ITEM_RESAMPLES)
            drawn[:, arm] = draw.permutation(alike[counts])
    return drawn


def _resampled(columns: Sequence[ItemScores], draw: np.random.Generator) -> Array:
    """[resamples, columns], with the same items drawn for all columns."""
    num_items = len(columns[0].items)
    scores, weights = (np.stack(parts, 1) for parts in zip(*((c.scores, c.weights) for c in columns), strict=True))
    at_once = max(1, _MOST_DRAWN // num_items)
    means = []
    for done in range(0, ITEM_RESAMPLES, at_once):
        rows = min(at_once, ITEM_RESAMPLES - done)
        places = draw.integers(0, num_items, (rows, num_items)) + num_items * np.arange(rows)[:, None]
        times = np.bincount(places.ravel(), minlength=rows * num_items).reshape(rows, num_items).astype(np.float64)
        means.append(times @ scores / (times @ weights))
    return np.concatenate(means)


def _all_alike(replicates: Sequence[ItemScores]) -> bool | None:
    """True where every item is right in every replicate, False where every one is wrong, else None."""
    if any((one.weights != 1).any() for one in replicates):
        return None
    for value in (0.0, 1.0):
        if all((one.scores == value).all() for one in replicates):
            return bool(value)
    return None


def draw_known(values: Sequence[tuple[float, float]], draw: np.random.Generator) -> Array:
    """Means whose items are not known, only value and standard error.

    Args:
        values: Of each arm.
        draw: Of the normal distributions.

    Returns:
        [resamples, arms]
    """
    found = np.asarray(values, np.float64).reshape(-1, 2)
    return found[:, 0] + found[:, 1] * draw.standard_normal((ITEM_RESAMPLES, len(found)))


def spread_of_seeds(arms: Sequence[Sequence[float]]) -> SeedSpread | None:
    """The spread of replicates around their arm's mean, pooled over arms; None where no arm has two.

    Args:
        arms: Of each arm the value of each replicate.

    >>> spread_of_seeds([[1.0, 3.0], [5.0, 5.0]])
    SeedSpread(deviation=1.0, degrees=2)
    """
    degrees = sum(max(0, len(values) - 1) for values in arms)
    if degrees == 0:
        return None
    squares = sum(float(np.square(np.asarray(values) - np.mean(values)).sum()) for values in arms if values)
    return SeedSpread(float(np.sqrt(squares / degrees)), degrees)


def draw_both(item_draws: Array, seed_draws: Array | float) -> Array:
    """Means over other items and other seeds: every resample of items with five draws of seeds."""
    return np.tile(item_draws, (DRAWS // ITEM_RESAMPLES, 1)) + seed_draws


def ends(draws: Array, value: float) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of draws; never without the value itself.

    Args:
        draws: [draws]
        value: That was found.
    """
    low, high = np.percentile(draws, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return min(float(low), value), max(float(high), value)
