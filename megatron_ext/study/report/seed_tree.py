"""How far other seeds would move arms that share stages: shared luck cancels in a difference, own luck does not.

Replicates form trees: replicate 0 of four bases may begin from one shared first part, replicate 1 from another, and
several fine-tunings from one base. What a seed does to a shared stage moves everything that was trained from it. So
the spread of seeds is estimated and drawn by level of the tree:

- **first stages**: how far replicates of one first stage lie apart, over all that was made from them;
- **each later level**: how far replicates of an arm lie apart when what they share with their neighbours has been taken
  off. With n arms behind R replicates of one stage that is the residual of arms x replicates, with (n - 1)(R - 1)
  degrees of freedom: the blocks of R. A. Fisher, The Design of Experiments (1935), section 26.

Without shared stages there is one level, and it is the t-test with pooled variance. A level's spread holds part of what
lies below it, so that the sum is a little too wide, not too narrow. Where shared stages do not have all their arms (a
study that is under way), all arms are taken as unrelated, which is wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_ext.study.report.bootstrap import DRAWS, Array, SeedSpread


@dataclass(frozen=True)
class SeedRun:
    """One independent replicate of a row.

    Attributes:
        value: What it found.
        path: Ids of the stages behind it, first to last; () where they are not known.
    """

    value: float
    path: tuple[str, ...] = ()


class SeedTree:
    """The replicates of all rows of one number, by what they share.

    Args:
        rows: Of each row its independent replicates.

    Attributes:
        spreads: By level, first stages first; None where a level moves nothing of its own.
    """

    def __init__(self, rows: Sequence[Sequence[SeedRun]]) -> None:
        self._num_rows = len(rows)
        values = [[run.value for run in row] for row in rows]
        self._place(values, _paths_of(rows))
        if not self._is_known() and any(len(row) > 1 for row in rows):
            self._place(values, [[(f"{row}/{at}",) for at in range(len(runs))] for row, runs in enumerate(rows)])

    def _place(self, values: Sequence[Sequence[float]], paths: Sequence[Sequence[tuple[str, ...]]]) -> None:
        self._paths = paths
        self._children: dict[str, list[str]] = {}
        self._rows_of: dict[str, set[int]] = {}
        self._levels: list[list[str]] = [[] for _ in range(max((len(p) for row in paths for p in row), default=0))]
        self._found: dict[str, float] = {}
        for row, (row_values, row_paths) in enumerate(zip(values, paths, strict=True)):
            for value, path in zip(row_values, row_paths, strict=True):
                for level, node in enumerate(path):
                    if node not in self._rows_of:
                        self._levels[level].append(node)
                        self._children.setdefault(path[level - 1] if level else "", []).append(node)
                    self._rows_of.setdefault(node, set()).add(row)
                self._found[path[-1]] = value
        for nodes in reversed(self._levels):
            for node in nodes:
                if node in self._children:
                    self._found[node] = float(np.mean([self._found[child] for child in self._children[node]]))
        self.spreads = [self._spread(level) for level in range(len(self._levels))]

    def _branches(self, level: int) -> bool:
        """Whether arms part at a level; at the first one whether anything has two replicates."""
        if level == 0:
            return any(len(row) > 1 for row in self._paths)
        return any(len(self._children.get(node, ())) > 1 for node in self._levels[level - 1])

    def _is_known(self) -> bool:
        return all(self.spreads[level] is not None for level in range(len(self._levels)) if self._branches(level))

    def _spread(self, level: int) -> SeedSpread | None:
        squares, degrees = 0.0, 0
        for block in self._blocks(level):  # [arms, replicates]
            residuals = block - block.mean(1, keepdims=True)
            if level:
                residuals = residuals - residuals.mean(0, keepdims=True)
            squares += float(np.square(residuals).sum())
            degrees += max(1, block.shape[0] - 1) * (block.shape[1] - 1)
        return SeedSpread(float(np.sqrt(squares / degrees)), degrees) if degrees else None

    def _blocks(self, level: int) -> list[Array]:
        """What replicates found, [arms, replicates]: of each first stage, or of the arms that part behind one stage."""
        alike: dict[frozenset[int], list[str]] = {}
        for node in self._levels[max(0, level - 1)]:
            alike.setdefault(frozenset(self._rows_of[node]), []).append(node)
        blocks = []
        for nodes in alike.values():
            if level == 0:
                blocks.append(np.asarray([[self._found[node] for node in nodes]]))
                continue
            parts = [{frozenset(self._rows_of[child]): child for child in self._children.get(n, ())} for n in nodes]
            arms = list(parts[0])
            if len(arms) > 1 and all(set(part) == set(arms) for part in parts):
                blocks.append(np.asarray([[self._found[part[arm]] for part in parts] for arm in arms]))
        return [block for block in blocks if block.shape[1] > 1]

    @property
    def paired(self) -> SeedSpread | None:
        """The spread that differences between arms with shared stages have; None where none share.

        Its degrees of freedom are those of the level that knows least.
        """
        levels = [one for one in self.spreads[1:] if one is not None]
        if not levels:
            return None
        deviation = float(np.sqrt(sum(one.deviation**2 for one in levels)))
        return SeedSpread(deviation, min(one.degrees for one in levels))

    def draw(self, draw: np.random.Generator) -> Array:
        """How far other seeds would move each row's mean: zero mean, and zero where no row has two replicates.

        Args:
            draw: Of the normal and chi-squared distributions.

        Returns:
            [draws, rows]. One spread is drawn for all stages of a level, since it was estimated from all of them.
        """
        moved = np.zeros((DRAWS, self._num_rows))
        for level, spread in enumerate(self.spreads):
            if spread is None:
                continue
            at = {node: number for number, node in enumerate(self._levels[level])}
            shares = np.zeros((len(at), self._num_rows))
            for row, paths in enumerate(self._paths):
                for path in paths:
                    if level < len(path):
                        shares[at[path[level]], row] += 1 / len(paths)
            deviation = spread.deviation * np.sqrt(spread.degrees / draw.chisquare(spread.degrees, DRAWS))
            moved += deviation[:, None] * (draw.standard_normal((DRAWS, len(at))) @ shares)
        return moved


def _paths_of(rows: Sequence[Sequence[SeedRun]]) -> list[list[tuple[str, ...]]]:
    """The stages that can differ: without those that all replicates of a row share, ending in one of the row's own."""
    shared = [set.intersection(*(set(run.path) for run in row)) for row in rows if len(row) > 1]
    fixed = set().union(*shared)
    passed = {node for row in rows for run in row for node in run.path[:-1]}
    return [
        [
            (
                *(node for node in run.path if node not in fixed),
                *((f"{row}/{at}",) if not run.path or run.path[-1] in fixed | passed else ()),
            )
            for at, run in enumerate(runs)
        ]
        for row, runs in enumerate(rows)
    ]
