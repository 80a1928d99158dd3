"""Replicates that are independent of each other: several fine-tunings of one base share the luck of that base."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_ext.study.report.evaluated import Evaluated

Families = tuple[tuple[int, ...], ...]
"""Numbers of a row's replicates, apart by the earliest stage in which they differ."""


def families_of(row: Sequence[Evaluated]) -> Families:
    """The families of a row; each replicate is one where no chain is known, or all begin from one stage."""
    level = next((ids for ids in zip(*(one.chain for one in row), strict=False) if len(set(ids)) > 1), None)
    if level is None:
        return tuple((one.replicate,) for one in row)
    found: dict[str, list[int]] = {}
    for one, stage_id in zip(row, level, strict=True):
        found.setdefault(stage_id, []).append(one.replicate)
    return tuple(map(tuple, found.values()))


def means_of(values: Sequence[dict[int, float]], families: Sequence[Families]) -> list[list[float]]:
    """Of each row the mean of each family that has a value.

    Args:
        values: Of each row, by the number of the replicate.
        families: Of each row.

    >>> means_of([{0: 1.0, 1: 5.0, 2: 3.0}], [((0, 2), (1, 3))])
    [[2.0, 5.0]]
    """
    found = []
    for row, of_row in zip(values, families, strict=True):
        there = [[row[number] for number in family if number in row] for family in of_row]
        found.append([float(np.mean(numbers)) for numbers in there if numbers])
    return found
