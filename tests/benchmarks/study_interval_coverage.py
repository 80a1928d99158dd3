"""How often the report's 95 % interval of a difference holds the true difference, on made-up studies.

    python tests/benchmarks/study_interval_coverage.py [--studies 400]

Arms answer 200 items whose difficulty differs; each replicate is moved by its seed (a quarter of a logit, about 5
points at a half), each answer by chance. Two arms are compared, of two or of six in the study. Beside it: what
resampling seeds instead of Student's t would have given.
"""

from __future__ import annotations

import argparse

import numpy as np

from megatron_ext.study.report.bootstrap import ItemScores, draw_both, draw_items, draw_seeds, ends

ITEMS = 200
SEED_DEVIATION = 0.25  # of the logit: about 5 points at a half
GAP = 0.5


def made_up(arms: int, seeds: int, draw: np.random.Generator) -> tuple[list[list[ItemScores]], np.ndarray]:
    """Scores of a study's arms, [arms][seeds], and the logits' shifts; only the first arm is better."""
    hardness = draw.normal(0.0, 1.0, ITEMS)
    shifts = np.asarray([GAP] + [0.0] * (arms - 1))
    items = tuple(f"{item:03d}" for item in range(ITEMS))
    found = []
    for shift in shifts:
        moved = shift + draw.normal(0.0, SEED_DEVIATION, seeds)
        chances = 1 / (1 + np.exp(-(moved[:, None] + hardness)))
        answers = (draw.random(chances.shape) < chances).astype(float)
        found.append([ItemScores(items, row, np.ones(ITEMS)) for row in answers])
    return found, shifts


def truth(draw: np.random.Generator) -> float:
    """The difference in the mean of all items and seeds."""
    hardness = draw.normal(0.0, (1.0 + SEED_DEVIATION**2) ** 0.5, 2_000_000)
    return float(np.mean(1 / (1 + np.exp(-(GAP + hardness)))) - np.mean(1 / (1 + np.exp(-hardness))))


def main() -> None:
    """Prints a table of coverages and widths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=400)
    studies = parser.parse_args().studies
    true = truth(np.random.default_rng(1))
    print(f"true difference {100 * true:.1f} points; {studies} studies each; {ITEMS} items")
    print("arms seeds  covered  half-width  | seeds resampled: covered")
    for arms, seeds in ((2, 1), (2, 2), (6, 1), (6, 2), (6, 3), (6, 5)):
        held = resampled = 0
        widths = []
        for study in range(studies):
            draw = np.random.default_rng([arms, seeds, study])
            scores, _ = made_up(arms, seeds, draw)
            values = [[one.mean for one in row] for row in scores]
            items = draw_items(scores, draw)
            draws = draw_both(items, draw_seeds(values, draw))
            value = float(np.mean(values[0]) - np.mean(values[1]))
            low, high = ends(draws[:, 0] - draws[:, 1], value)
            held += low <= true <= high
            widths.append((high - low) / 2)
            picks = draw.integers(0, seeds, (2, len(items), seeds))
            naive = [np.asarray(values[arm])[picks[arm]].mean(1) - np.mean(values[arm]) for arm in (0, 1)]
            low, high = ends(items[:, 0] - items[:, 1] + naive[0] - naive[1], value)
            resampled += low <= true <= high
        width = 100 * float(np.mean(widths))
        print(
            f"{arms:4} {seeds:5}  {100 * held / studies:6.1f} %  {width:7.1f}     | {100 * resampled / studies:6.1f} %"
        )


if __name__ == "__main__":
    main()
