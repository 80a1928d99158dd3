"""What people name in `lineage` and `study compare`: a stage's folder, a checkpoint, or an arm of a study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import DataError, UsageError
from megatron_ext.datasets.ledger import checkpoint_at
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.study.make import make_study_plan


@dataclass(frozen=True)
class NamedArm:
    """An arm, or one replicate of it, as it lies on the disk.

    Attributes:
        label: As it was named.
        chains: Of each replicate the folders of its stages, first to last, finished or not.
    """

    label: str
    chains: tuple[tuple[Path, ...], ...]


def arm_named(name: str, study: Path, *, site: Path | None = None, run_root: Path | None = None) -> NamedArm:
    """An arm of a study.

    Args:
        name: `ARM`, or `ARM#N` for its replicate N, from 0.
        study: The study file.
        site: A site file; None takes the default.
        run_root: Folder that holds `stages/`; None takes the site's.

    Raises:
        UsageError: There is no such arm or replicate.
        RecipeError: The study cannot be planned.
    """
    arm_id, mark, number = name.partition("#")
    plan = make_study_plan(study, site=site, run_root=run_root, arms=(arm_id,))
    if len(plan.arms) != 1:
        raise UsageError(f"{name}: names {len(plan.arms)} arms of {study}: {', '.join(arm.id for arm in plan.arms)}")
    stages = Path(plan.run_root) / "stages"
    chains = tuple(tuple(stages / stage_id for stage_id in chain) for chain in plan.arms[0].chains)
    if mark:
        if not number.isdecimal() or int(number) >= len(chains):
            raise UsageError(f"{name}: {arm_id} has {len(chains)} replicates: write #0 to #{len(chains) - 1}")
        chains = (chains[int(number)],)
    return NamedArm(name, chains)


def checkpoint_named(
    name: str, *, study: Path | None = None, site: Path | None = None, run_root: Path | None = None
) -> Path:
    """The checkpoint that somebody means.

    Args:
        name: A path; with `study` an arm, of which replicate 0 counts where none is written.
        study: A study file.
        site: As for `arm_named`.
        run_root: Likewise.

    Raises:
        DataError: There is none, or the arm is not trained to its end.
        UsageError: There is no such arm.
    """
    if study is None:
        return checkpoint_at(Path(name))
    chain = arm_named(name, study, site=site, run_root=run_root).chains[0]
    finished = [folder for folder in chain if (folder / STAGE_FILE).is_file()]
    if finished != list(chain):
        done = f"finished: {', '.join(map(str, finished))}" if finished else "no stage of it is finished"
        raise DataError(
            f"{name}: {chain[len(finished)]} is not trained; {done}. Train it: megatron-ext study run {study}"
        )
    return checkpoint_at(chain[-1])
