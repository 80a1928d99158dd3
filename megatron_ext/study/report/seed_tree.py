"""How far other seeds would move arms that share stages: shared luck cancels in a difference, own luck does not.

Replicates form trees: replicate 0 of four bases may begin from one shared first part, replicate 1 from another, and
several fine-tunings from one base. What a seed does to a shared stage moves everything that was trained from it. So
the spread of seeds is estimated and drawn by level of the tree:

- **first stages**: how far replicates of one first stage lie apart, over all that was made from them;
- **each later level**: how far replicates of an arm lie apart when what they share with their neighbours has been taken
  off. With n arms behind R replicates of one stage that is the residual of arms x replicates, with (n - 1)(R - 1)
  degrees of freedom: the blocks of R. A. Fisher, The Design of Experiments (1935), section 26.

Without shared stages there is one level, and it is the t-test with pooled variance. Arms that miss a replicate which
others have (a study that is under way) are drawn, and not used for spreads. A level where arms part and no two of them
have all replicates takes the spread of the level above, which is larger.

A tree knows nothing of luck that arms of one SFT recipe share across bases: of two recipes behind three bases all
three differences may move together. Therefore an interval of a difference is never narrower than that of the t-test
on the difference by replicate (`contrast_draws`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_ext.study.report.bootstrap import DRAWS, Array, SeedSpread

Paths = Sequence[Sequence[tuple[str, ...]]]
"""Of each row, of each of its replicates, ids of the stages that can differ."""


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
        self._paths = _paths_of(rows)
        self._levels = _nodes(self._paths)
        complete = _complete_rows(self._paths)
        known = _Complete([rows[row] for row in complete], [self._paths[row] for row in complete])
        self.spreads: list[SeedSpread | None] = []
        for level in range(len(self._levels)):
            spread = known.spread(level)
            if spread is None and level and self._branches(level):
                spread = self.spreads[level - 1]
            self.spreads.append(spread)

    def _branches(self, level: int) -> bool:
        """Whether arms part behind a stage of the level above."""
        pairs = {path[level - 1 : level + 1] for row in self._paths for path in row if len(path) > level}
        return len({parent for parent, _ in pairs}) < len(pairs)

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
        moved = np.zeros((DRAWS, len(self._paths)))
        for level, spread in enumerate(self.spreads):
            if spread is None:
                continue
            at = {node: number for number, node in enumerate(self._levels[level])}
            shares = np.zeros((len(at), len(self._paths)))
            for row, paths in enumerate(self._paths):
                for path in paths:
                    if level < len(path):
                        shares[at[path[level]], row] += 1 / len(paths)
            deviation = spread.deviation * np.sqrt(spread.degrees / draw.chisquare(spread.degrees, DRAWS))
            moved += deviation[:, None] * (draw.standard_normal((DRAWS, len(at))) @ shares)
        return moved


class _Complete:
    """Rows that have all replicates of their first stages: what spreads are estimated from."""

    def __init__(self, rows: Sequence[Sequence[SeedRun]], paths: Paths) -> None:
        self._levels = _nodes(paths)
        self._children: dict[str, list[str]] = {}
        self._rows_of: dict[str, set[int]] = {}
        found: dict[str, float] = {}
        for row, (runs, row_paths) in enumerate(zip(rows, paths, strict=True)):
            for run, path in zip(runs, row_paths, strict=True):
                for parent, child in itertools.pairwise(path):
                    children = self._children.setdefault(parent, [])
                    if child not in children:
                        children.append(child)
                for node in path:
                    self._rows_of.setdefault(node, set()).add(row)
                found[path[-1]] = run.value
        for nodes in reversed(self._levels):
            found |= {
                node: float(np.mean([found[child] for child in self._children[node]]))
                for node in nodes
                if node in self._children
            }
        self._found = found

    def spread(self, level: int) -> SeedSpread | None:
        """The spread of a level; None where nothing is known of it."""
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
        for node in self._levels[max(0, level - 1)] if level < len(self._levels) else ():
            alike.setdefault(frozenset(self._rows_of[node]), []).append(node)
        if level == 0:
            blocks = [np.asarray([[self._found[node] for node in nodes]]) for nodes in alike.values()]
            return [block for block in blocks if block.shape[1] > 1]
        blocks = []
        for nodes in alike.values():
            parts = [{frozenset(self._rows_of[child]): child for child in self._children.get(n, ())} for n in nodes]
            arms = list(parts[0])
            if len(arms) > 1 and len(nodes) > 1 and all(set(part) == set(arms) for part in parts):
                blocks.append(np.asarray([[self._found[part[arm]] for part in parts] for arm in arms]))
        return blocks


def contrast_draws(
    better: Sequence[Sequence[SeedRun]], than: Sequence[Sequence[SeedRun]], draw: np.random.Generator
) -> Array | None:
    """How far other seeds would move mean of some rows - mean of others, by the t-test on it by replicate.

    Args:
        better: Of each row its replicates.
        than: Of each row of the other side.
        draw: Of Student's t.

    Returns:
        [draws] of zero mean; None where the rows do not share their first stages, replicate by replicate.
    """
    rows = [*better, *than]
    first_stages = [[path[0] for path in row] for row in _paths_of(rows)]
    seeds = len(first_stages[0])
    if seeds < 2 or len(rows) < 2 or any(row != first_stages[0] for row in first_stages):
        return None
    values = np.asarray([[run.value for run in row] for row in rows])
    contrast = values[: len(better)].mean(0) - values[len(better) :].mean(0)
    error = float(contrast.std(ddof=1)) / seeds**0.5
    drawn: Array = error * draw.standard_t(seeds - 1, DRAWS)
    return drawn


def _nodes(paths: Paths) -> list[list[str]]:
    """The stages of each level, in the order of rows."""
    levels: list[dict[str, None]] = []
    for path in (path for row in paths for path in row):
        levels += [{} for _ in range(len(path) - len(levels))]
        for level, node in enumerate(path):
            levels[level][node] = None
    return [list(nodes) for nodes in levels]


def _complete_rows(paths: Paths) -> list[int]:
    """Of rows that share first stages those that have the most of them, all the same ones."""
    first_stages = [frozenset(path[0] for path in row) for row in paths]
    related: list[set[int]] = []
    for row, own in enumerate(first_stages):
        joined = [group for group in related if any(first_stages[one] & own for one in group)]
        related = [group for group in related if group not in joined] + [set().union(*joined, {row})]
    complete = []
    for group in related:
        most = max((first_stages[row] for row in sorted(group)), key=len)
        complete += [row for row in group if first_stages[row] == most]
    return sorted(complete)


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
