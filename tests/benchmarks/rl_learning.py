"""Whether rewards teach: right answers to held-out prompts before and after, with intervals, for three seeds.

    python tests/benchmarks/rl_learning.py [--seeds 1 2 3] [--write docs/explanation/rl_learning]

After `make demo` and `recipes/demo/form.yaml` (docs/how-to/train-with-rewards.md), in the same folder: runs
`recipes/demo/rl.yaml` with other seeds, which decide what is sampled and in which order prompts come. A tenth of the
answers is right by chance. Prints the reward by tens of steps and asserts nothing. `--write` keeps the numbers (.csv)
and draws them (.svg).
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

RECIPE = "recipes/demo/rl.yaml"


def run(seed: int, processes: int) -> tuple[Path, list[float]]:
    """Trains one seed, unless that is done; gives the stage's folder, and the rate before it with its interval."""
    override = ["--set", f"seed={seed}"]
    plan = [sys.executable, "-m", "megatron_ext", "plan", RECIPE, *override, "--json"]
    stage_id = json.loads(subprocess.run(plan, check=True, capture_output=True).stdout)["stage_id"]
    folder = Path("runs/stages") / stage_id
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    if not (folder / "stage.json").exists():
        with Path("runs", f"rl_learning_{stage_id}.log").open("w") as file:
            command = [sys.executable, *launcher, "-m", "megatron_ext.run", RECIPE, *override]
            subprocess.run(command, check=True, stdout=file, stderr=subprocess.STDOUT)
    before = json.loads((folder / "before.json").read_text())["validation"]
    return folder, [round(before[name], 4) for name in ("digit", "digit_low", "digit_high")]


def rows_of(folder: Path, seed: int, before: list[float]) -> list[dict[str, Any]]:
    """A row a step: mean reward of its completions, and the held-out pass rate where it was looked at."""
    rate, low, high = before
    rows: list[dict[str, Any]] = [{"seed": seed, "step": 0, "reward": "", "held_out": rate, "low": low, "high": high}]
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        step = json.loads(line)
        held_out = step["validation"]
        rows.append(
            {
                "seed": seed,
                "step": step["step"],
                "reward": round(step["reward"], 4),
                **{
                    name: round(held_out[key], 4) if key in held_out else ""
                    for name, key in (("held_out", "digit"), ("low", "digit_low"), ("high", "digit_high"))
                },
            }
        )
    return rows


def report(rows: list[dict[str, Any]], seed: int) -> None:
    """Prints what came of a seed."""
    rewards = [row["reward"] for row in rows if row["step"]]
    tens = [fmean(rewards[at : at + 10]) for at in range(0, len(rewards), 10)]
    print(f"seed {seed}: reward by tens of steps:", *(f"{mean:.2f}" for mean in tens))
    for row in rows:
        if row["held_out"] != "":
            print(f"  step {row['step']}: held out {row['held_out']:.1%} (95 %: {row['low']:.1%} to {row['high']:.1%})")
    sys.stdout.flush()


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The reward of each step as lines, held-out pass rates with their intervals as points."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "rl_learning"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    for number, seed in enumerate(sorted({row["seed"] for row in rows})):
        some = [row for row in rows if row["seed"] == seed]
        axes.plot(
            [row["step"] for row in some[1:]], [row["reward"] for row in some[1:]], color=f"C{number}", linewidth=0.9
        )
        seen = [row for row in some if row["held_out"] != ""]
        spread = [[row["held_out"] - row["low"] for row in seen], [row["high"] - row["held_out"] for row in seen]]
        steps, rates = [row["step"] + number / 2 for row in seen], [row["held_out"] for row in seen]
        axes.errorbar(steps, rates, spread, fmt="o", markersize=4, color=f"C{number}", label=f"seed {seed}")
    axes.axhline(0.1, color="grey", linestyle=":", linewidth=0.9)
    axes.set(xlabel="step", ylabel="right answers", ylim=(0, 1.02))
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Trains each seed, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", type=Path, metavar="PREFIX", help="keep PREFIX.csv and PREFIX.svg")
    arguments = parser.parse_args()
    plans = Path("runs/stages").glob("sft-*/plan.json")
    if not any("demo/form.yaml" in plan.read_text() and (plan.parent / "stage.json").exists() for plan in plans):
        print("not run: recipes/demo/form.yaml has no finished stage here")
        return
    every = []
    for seed in arguments.seeds:
        folder, before = run(seed, arguments.processes)
        rows = rows_of(folder, seed, before)
        report(rows, seed)
        every += rows
    if arguments.write:
        with arguments.write.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(every[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(every)
        draw(every, arguments.write.with_suffix(".svg"))


if __name__ == "__main__":
    main()
