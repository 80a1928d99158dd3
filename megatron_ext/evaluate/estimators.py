"""What right and wrong answers say: avg@k, pass@k, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megatron_ext.evaluate.results import Interval, Metric
from megatron_ext.training.intervals import bootstrap_interval, wilson_interval


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The chance that one of k answers is right, estimated without bias from more of them.

    1 - C(n - c, k) / C(n, k), as a product of numbers in [0, 1]: the binomials of large n overflow.
    Source: Chen et al. 2021 (arXiv 2107.03374), section 2.1 and figure 3.

    Args:
        num_samples: Answers, n.
        num_right: Of these, c.
        k: At most n.

    >>> pass_at_k(4, 1, 2), pass_at_k(4, 0, 4), pass_at_k(4, 3, 2)
    (0.5, 0.0, 1.0)
    """
    assert 0 <= num_right <= num_samples, f"{num_right} of {num_samples} answers right"
    assert 1 <= k <= num_samples, f"pass@{k} of {num_samples} answers"
    if num_samples - num_right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_right + 1, num_samples + 1))


def answer_metrics(rights: Sequence[int], num_samples: int, *, seed: int) -> tuple[Metric, ...]:
    """avg@k, and pass@2, pass@4, … up to k.

    Args:
        rights: Of each item the number of right answers.
        num_samples: Answers to each item, k.
        seed: Of bootstraps.
    """
    averages = [right / num_samples for right in rights]
    found = [mean_metric(f"avg@{num_samples}", averages, num_samples=num_samples, seed=seed)]
    ks = sorted({2**power for power in range(1, num_samples.bit_length()) if 2**power < num_samples} | {num_samples})
    for k in ks if num_samples > 1 else ():
        values = [pass_at_k(num_samples, right, k) for right in rights]
        found.append(mean_metric(f"pass@{k}", values, num_samples=num_samples, seed=seed))
    return tuple(found)


def mean_metric(name: str, values: Sequence[float], *, num_samples: int, seed: int) -> Metric:
    """The mean of items in [0, 1] with its interval.

    Wilson's where each item has one answer, and where all items are alike, because resampling them would say that
    nothing else can happen; else the bootstrap over items.

    Args:
        name: Of the metric.
        values: Of each item, at least one.
        num_samples: Answers that each value was made of.
        seed: Of the bootstrap.
    """
    mean = math.fsum(values) / len(values)
    if num_samples == 1 or len(set(values)) == 1:
        low, high = wilson_interval(mean, len(values))
        method = "Wilson, over items"
    else:
        low, high = bootstrap_interval(values, seed=seed)
        method = "percentile bootstrap over items, 2,000 resamples"
    return Metric(name=name, value=mean, n=len(values), interval=Interval(low=low, high=high, method=method))
