"""Replicates that are independent of each other: several fine-tunings of one base share the luck of that base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_ext.study.report.evaluated import Evaluated
from megatron_ext.study.report.seed_tree import SeedRun


@dataclass(frozen=True)
class Family:
    """Replicates of a row that begin from one stage.

    Attributes:
        replicates: Their numbers.
        path: Ids of the stages behind them, first to last; () where no chain is known.
    """

    replicates: tuple[int, ...]
    path: tuple[str, ...] = ()


def families_of(row: Sequence[Evaluated]) -> tuple[Family, ...]:
    """The families of a row, apart by the earliest stage in which replicates differ; each is one if none does."""
    levels = list(zip(*(one.chain for one in row), strict=False))
    parting = next((level for level in levels if len(set(level)) > 1), [str(one.replicate) for one in row])
    found: dict[str, list[int]] = {}
    for at, key in enumerate(parting):
        found.setdefault(key, []).append(at)
    return tuple(
        Family(
            tuple(row[at].replicate for at in members),
            tuple("+".join(dict.fromkeys(level[at] for at in members)) for level in levels),
        )
        for members in found.values()
    )


def runs_of(values: Sequence[Mapping[int, float]], families: Sequence[Sequence[Family]]) -> list[list[SeedRun]]:
    """Of each row the mean of each family that has a value.

    Args:
        values: Of each row, by the number of the replicate.
        families: Of each row.

    >>> runs_of([{0: 1.0, 1: 5.0, 2: 3.0}], [(Family((0, 2)), Family((1, 3)))])
    [[SeedRun(value=2.0, path=()), SeedRun(value=5.0, path=())]]
    """
    found = []
    for row, of_row in zip(values, families, strict=True):
        there = [([row[number] for number in one.replicates if number in row], one.path) for one in of_row]
        found.append([SeedRun(float(np.mean(numbers)), path) for numbers, path in there if numbers])
    return found
