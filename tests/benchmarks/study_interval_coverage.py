"""How often the report's 95 % interval of a difference holds the true difference, on made-up studies.

    python tests/benchmarks/study_interval_coverage.py [--studies 400]

Arms answer 200 items whose difficulty differs; each replicate is moved by its seed (a quarter of a logit, about 5
points at a half), each answer by chance. Two arms of the study's are compared. In the last two parts all arms of a seed
also share the luck of one first stage (half a logit), which the report does not know, or knows. Beside it: what
resampling seeds instead of Student's t would have given.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np

from megatron_ext.study.report.bootstrap import ItemScores, draw_both, draw_items, ends
from megatron_ext.study.report.seed_tree import SeedRun, SeedTree, contrast_draws

ITEMS = 200
SEED_DEVIATION = 0.25  # of the logit: about 5 points at a half
GAP = 0.5


class Covered(NamedTuple):
    """Of one study: whether the interval holds the truth, half of its width, and whether resampled seeds hold it."""

    holds: bool
    half_width: float
    resampled_holds: bool


def made_up(arms: int, seeds: int, shared: float, draw: np.random.Generator) -> list[list[ItemScores]]:
    """Scores of a study's arms, [arms][seeds]; only the first arm is better.

    Args:
        arms: Of the study.
        seeds: Of each arm.
        shared: Deviation of the logit by the first stage of a seed, which all arms share; 0: they share none.
        draw: Of all that is random.
    """
    hardness = draw.normal(0.0, 1.0, ITEMS)
    shifts = np.asarray([GAP] + [0.0] * (arms - 1))
    items = tuple(f"{item:03d}" for item in range(ITEMS))
    together = draw.normal(0.0, shared, seeds)
    found = []
    for shift in shifts:
        moved = shift + together + draw.normal(0.0, SEED_DEVIATION, seeds)
        chances = 1 / (1 + np.exp(-(moved[:, None] + hardness)))
        answers = (draw.random(chances.shape) < chances).astype(float)
        found.append([ItemScores(items, row, np.ones(ITEMS)) for row in answers])
    return found


def truth(shared: float, draw: np.random.Generator) -> float:
    """The difference in the mean of all items and seeds."""
    hardness = draw.normal(0.0, (1.0 + SEED_DEVIATION**2 + shared**2) ** 0.5, 2_000_000)
    return float(np.mean(1 / (1 + np.exp(-(GAP + hardness)))) - np.mean(1 / (1 + np.exp(-hardness))))


def covered(scores: list[list[ItemScores]], *, knows_parents: bool, true: float, draw: np.random.Generator) -> Covered:
    """Whether the intervals of the first arm's difference to the second hold the true one, and how wide they are."""
    values = [[one.mean for one in row] for row in scores]
    items = draw_items(scores, draw)
    runs = [
        [SeedRun(value, (f"first-{seed}", f"{arm}-{seed}") if knows_parents else ()) for seed, value in enumerate(row)]
        for arm, row in enumerate(values)
    ]
    draws = draw_both(items, SeedTree(runs).draw(draw))
    value = float(np.mean(values[0]) - np.mean(values[1]))
    low, high = ends(draws[:, 0] - draws[:, 1], value)
    picks = draw.integers(0, len(values[0]), (2, len(items), len(values[0])))
    naive = [np.asarray(values[arm])[picks[arm]].mean(1) - np.mean(values[arm]) for arm in (0, 1)]
    lowest, highest = ends(items[:, 0] - items[:, 1] + naive[0] - naive[1], value)
    return Covered(low <= true <= high, (high - low) / 2, lowest <= true <= highest)


def crossed(seeds: int, shared: float, draw: np.random.Generator) -> tuple[bool, bool]:
    """Whether intervals hold 0, the true difference of two SFT recipes over three bases: of the tree alone, and both.

    Luck in points, without noise of items: 8 of a first stage, 2 of a base, 2 of a fine-tuning.

    Args:
        seeds: Of each arm.
        shared: Luck that the arms of one SFT recipe share across bases in a seed, in points.
        draw: Of all that is random.
    """
    first = draw.normal(0.0, 8.0, seeds)
    base, recipe = draw.normal(0.0, 2.0, (3, seeds)), draw.normal(0.0, shared, (2, seeds))
    rows = [
        [
            SeedRun(
                float(first[seed] + base[at, seed] + recipe[sft, seed] + draw.normal(0.0, 2.0)),
                (f"first-{seed}", f"base-{at}-{seed}", f"sft-{sft}-{at}-{seed}"),
            )
            for seed in range(seeds)
        ]
        for sft in range(2)
        for at in range(3)
    ]
    means = [float(np.mean([run.value for run in row])) for row in rows]
    value = float(np.mean(means[:3]) - np.mean(means[3:]))
    tree = SeedTree(rows).draw(draw)
    by_replicate = contrast_draws(rows[:3], rows[3:], draw)
    assert by_replicate is not None, "all rows share their first stages"
    low, high = ends(value + tree[:, :3].mean(1) - tree[:, 3:].mean(1), value)
    lower, higher = ends(value + by_replicate, value)
    return low <= 0 <= high, min(low, lower) <= 0 <= max(high, higher)


def main() -> None:
    """Prints tables of coverages and widths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=400)
    studies = parser.parse_args().studies
    print(f"{studies} studies each; {ITEMS} items")
    print("arms seeds shared  known   true  covered  half-width  | seeds resampled: covered")
    for shared, knows_parents in ((0.0, False), (0.5, False), (0.5, True)):
        true = truth(shared, np.random.default_rng(1))
        for arms, seeds in ((2, 1), (2, 2), (4, 2), (6, 1), (6, 2), (6, 3), (6, 5)):
            draws = [np.random.default_rng([arms, seeds, study]) for study in range(studies)]
            found = [
                covered(made_up(arms, seeds, shared, draw), knows_parents=knows_parents, true=true, draw=draw)
                for draw in draws
            ]
            holds, width, resampled = (float(np.mean(column)) for column in zip(*found, strict=True))
            print(
                f"{arms:4} {seeds:5} {shared:6.1f}  {'yes' if knows_parents else 'no':5} {100 * true:6.1f} "
                f"{100 * holds:6.1f} %  {100 * width:7.1f}     | {100 * resampled:6.1f} %"
            )
    print("two SFT recipes over three bases\nseeds shared  covered by the tree, by tree and t-test by replicate")
    for seeds, shared in ((2, 0.0), (2, 5.0), (3, 5.0), (4, 5.0)):
        held = np.mean([crossed(seeds, shared, np.random.default_rng([seeds, study])) for study in range(studies)], 0)
        print(f"{seeds:5} {shared:6.1f}  {100 * held[0]:6.1f} %  {100 * held[1]:6.1f} %")


if __name__ == "__main__":
    main()
