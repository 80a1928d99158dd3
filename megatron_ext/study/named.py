"""What people name in `lineage` and `study compare`: a stage's folder, a checkpoint, or an arm of a study."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import DataError, UsageError
from data_tools.quantities import counted
from megatron_ext.datasets.ledger import checkpoint_at
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.recipe.problems import instead_of
from megatron_ext.study.as_run import read_record, seeds_of_run
from megatron_ext.study.make import make_study_plan
from megatron_ext.study.study_plan import StudyPlan


@dataclass(frozen=True)
class NamedArm:
    """An arm, or one replicate of it, as it lies on the disk.

    Attributes:
        arm: Its id.
        label: As it was named.
        chains: Of each replicate the folders of its stages, first to last, finished or not.
    """

    arm: str
    label: str
    chains: tuple[tuple[Path, ...], ...]


def arm_named(name: str, plan: StudyPlan) -> NamedArm:
    """An arm of a study.

    Args:
        name: `ARM`, or `ARM#N` for its replicate N, from 0.
        plan: Of the study.

    Raises:
        UsageError: There is no such arm or replicate.
    """
    arm_id, mark, number = name.partition("#")
    known = [arm.id for arm in plan.arms]
    if arm_id not in known:
        raise UsageError(f"{name}: no such arm in {plan.path}; {instead_of(arm_id, known)}")
    stages = Path(plan.run_root) / "stages"
    chains = tuple(tuple(stages / stage_id for stage_id in chain) for chain in plan.arm(arm_id).chains)
    if mark:
        if not number.isdecimal() or int(number) >= len(chains):
            write = f"write #0 to #{len(chains) - 1}" if len(chains) > 1 else "write #0, or the arm alone"
            raise UsageError(f"{name}: {arm_id} has {counted(len(chains), 'replicate')}: {write}")
        chains = (chains[int(number)],)
    return NamedArm(arm_id, name, chains)


def study_named(
    path: Path,
    *,
    site: Path | None = None,
    run_root: Path | None = None,
    seeds: int | None = None,
    arms: tuple[str, ...] = (),
) -> StudyPlan:
    """A study with all its arms as they are planned now, with the replicates of its last run; of a `study.json` that.

    Args:
        path: A study file, or the `study.json` of a run.
        site: A site file; None takes the default.
        run_root: Folder that holds `stages/`; None takes the site's, or that of the run.
        seeds: Replicates of every stage; None takes those of the last run, or else the study's.
        arms: Ids of arms, `*` for any letters; () takes all.

    Raises:
        RecipeError: The study cannot be planned.
        DataError: The `study.json` cannot be read.
        UsageError: No arm of such an id, or a choice of what a `study.json` has decided.
    """
    if path.suffix == ".json":
        if seeds or arms or site:
            raise UsageError(f"{path} is planned; --seeds, --arms and --site are of a study file.")
        return read_record(path, run_root)
    plan = make_study_plan(path, site=site, run_root=run_root, seeds=seeds, arms=arms)
    of_run = seeds_of_run(plan) if seeds is None else None
    if of_run is None:
        return plan
    return make_study_plan(path, site=site, run_root=run_root, seeds=of_run, arms=arms)


def checkpoint_of(name: str) -> Path:
    """The checkpoint that a path means; a stage's id may be cut where its beginning is known once.

    Args:
        name: A stage's folder, its `checkpoints/step_N`, or the beginning of such a folder's name.

    Raises:
        DataError: There is none.
    """
    path = Path(name)
    if path.exists():
        return checkpoint_at(path)
    begun = [one for one in sorted(path.parent.glob(f"{glob.escape(path.name)}*")) if one.is_dir()] if path.name else []
    if path.parent.name == "checkpoints":
        steps = sorted(path.parent.glob("step_*"), key=lambda step: (len(step.name), step.name))
        there = f"there are {', '.join(step.name for step in steps)}" if steps else "there are none yet"
        raise DataError(f"{path}: no such checkpoint; {there}")
    if len(begun) == 1:
        return checkpoint_at(begun[0])
    if begun:
        raise DataError(f"{path}: begins the names of {', '.join(one.name for one in begun[:5])}; write one of them")
    arm = "" if len(path.parts) > 1 else ", or an arm with its study: --study STUDY.yaml"
    raise DataError(f"{path}: no such folder; name a stage's folder, one of its checkpoints/step_N{arm}")


def checkpoint_named(
    name: str, *, study: Path | None = None, site: Path | None = None, run_root: Path | None = None
) -> Path:
    """The checkpoint that somebody means.

    Args:
        name: A path; with `study` an arm, of which replicate 0 counts where none is written.
        study: As for `study_named`.
        site: Likewise.
        run_root: Likewise.

    Raises:
        DataError: There is none, or the arm is not trained to its end.
        UsageError: There is no such arm.
    """
    if study is None:
        return checkpoint_of(name)
    chain = arm_named(name, study_named(study, site=site, run_root=run_root)).chains[0]
    finished = [folder for folder in chain if (folder / STAGE_FILE).is_file()]
    if finished != list(chain):
        done = f"finished: {', '.join(map(str, finished))}" if finished else "no stage of it is finished"
        raise DataError(
            f"{name}: {chain[len(finished)]} is not trained; {done}. Train it: megatron-ext study run {study}"
        )
    return checkpoint_at(chain[-1])
