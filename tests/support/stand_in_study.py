"""A study whose stages are `stand_in_stage.py`: some seconds long, and killed as often as a test likes.

    a ─┬─ b ── c        python -m tests.support.stand_in_study RUN_ROOT --workers 2
       └─ d
    e                   fails while RUN_ROOT/broken is there; all wait while RUN_ROOT/hold is

The program gives this study to `run_here`, which is what `megatron-ext study run` does with what it has planned.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from data_tools.command_line import exit_code_of
from megatron_ext.study.launcher import Task
from megatron_ext.study.local import LocalLauncher, Machine
from megatron_ext.study.run import run_here
from megatron_ext.study.study_plan import ArmPlan, Cost, StageNode, StudyPlan, StudyTotals
from megatron_ext.study.tasks import is_finished, make_task, nodes_of

PARENTS = {"a": None, "b": "a", "c": "b", "d": "a", "e": None}
STEPS = 6


def stage_id(letter: str) -> str:
    """The id of a stage."""
    return f"pretrain-{letter}"


def stand_in_plan(run_root: Path, parents: Mapping[str, str | None] = PARENTS, *, steps: int = STEPS) -> StudyPlan:
    """The study as a plan: an arm for each of its last stages."""
    stages = tuple(_stage(letter, parent, steps) for letter, parent in parents.items())
    last = [letter for letter in parents if letter not in parents.values()]
    free = Cost(tokens=0, sampled_tokens=0, flops=0, disk_bytes=0)
    arms = tuple(ArmPlan(id=letter, chains=(_chain(letter, parents),), recipes=(), cost=free) for letter in last)
    totals = StudyTotals(
        arms=len(arms),
        chain_stages=sum(len(arm.chains[0]) for arm in arms),
        unique_stages=len(stages),
        evaluations=0,
        cost=free,
        unshared=free,
    )
    return StudyPlan(
        name="stand_in",
        path="stand_in.yaml",
        run_root=str(run_root),
        arms=arms,
        stages=stages,
        evaluations=(),
        varies=("data",),
        baseline=None,
        differences=(),
        findings=(),
        totals=totals,
    )


def _stage(letter: str, parent: str | None, steps: int) -> StageNode:
    return StageNode(
        stage_id=stage_id(letter),
        stage="pretrain",
        recipe=f"{letter}.yaml",
        overrides=(),
        parent=stage_id(parent) if parent is not None else None,
        takes="weights" if parent is not None else None,
        replicate=0,
        seed=1234,
        arms=(letter,),
        is_provisional=False,
        model="stand_in",
        world_size=1,
        total_steps=steps,
        tokens=100 * steps,
        flops=0,
        peak_memory_bytes=0,
        checkpoint_bytes=0,
        kept_checkpoints=0,
    )


def _chain(letter: str, parents: Mapping[str, str | None]) -> tuple[str, ...]:
    parent = parents[letter]
    return (*(_chain(parent, parents) if parent is not None else ()), stage_id(letter))


def stand_in_tasks(plan: StudyPlan, run_root: Path, *, step_s: float) -> dict[str, Task]:
    """The unfinished stages, each as the program that stands in for its run."""
    tasks = {}
    for node in nodes_of(plan):
        if is_finished(run_root, node):
            continue
        task = make_task(plan, node, run_root)
        folder = run_root / "stages"
        steps = ["--steps", str(plan.stage(node.stage_id).total_steps), "--step-s", str(step_s)]
        parent = plan.stage(node.stage_id).parent
        more = ["--waits-while", str(run_root / "hold")]
        more += ["--parent", str(folder / parent)] if parent is not None else []
        if node.stage_id == stage_id("e"):
            more += ["--fails-while", str(run_root / "broken")]
        arguments = (str(folder / node.stage_id), *steps, *more)
        tasks[task.name] = Task(
            node=node,
            name=task.name,
            module="tests.support.stand_in_stage",
            arguments=arguments,
            world_size=1,
            after=task.after,
            folder=task.folder,
        )
    return tasks


def main() -> int:
    """Runs what is unfinished of it, from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run_root", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--step-s", type=float, default=0.02)
    asked = parser.parse_args()
    plan = stand_in_plan(asked.run_root)
    tasks = stand_in_tasks(plan, asked.run_root, step_s=asked.step_s)
    launcher = LocalLauncher(workers=asked.workers, machine=Machine(cores=asked.workers, gpus=()))
    return exit_code_of(lambda: run_here(plan, tasks, launcher, record=plan, look_s=0.1))


if __name__ == "__main__":
    sys.exit(main())
