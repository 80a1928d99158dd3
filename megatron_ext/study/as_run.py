"""A study as it was run: with the replicates that were run, and where its runs left their results.

RUN_ROOT/studies/NAME/study.json holds the plan of all arms of the study's file as it was at the last run, with the most
replicates that any run had: what a run leaves out (`--arms`, `--seeds 1`) is not forgotten.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from data_tools.atomic_files import write_atomically
from data_tools.errors import DataError
from megatron_ext.recipe.study_schema import STAGE_KINDS, StageSeeds
from megatron_ext.study.launcher import study_folder
from megatron_ext.study.make import make_study_plan
from megatron_ext.study.study_plan import StudyPlan, read_study_plan

RECORD = "study.json"


def seeds_of_run(plan: StudyPlan) -> StageSeeds | None:
    """The replicates that the runs of a study had; None where they are those of its plan.

    Args:
        plan: As its file says now.
    """
    file = study_folder(Path(plan.run_root), plan.name) / RECORD
    if not file.is_file():
        return None
    try:
        run = _replicates(read_study_plan(file))
    except DataError as error:
        print(f"WARNING: {error}: shown is what {plan.path} says now", file=sys.stderr)
        return None
    planned = _replicates(plan)
    differ = [kind for kind in planned if run.get(kind, planned[kind]) != planned[kind]]
    if not differ:
        return None
    asked = ", ".join(f"{kind} {planned[kind]}" for kind in differ)
    had = ", ".join(f"{kind} {run[kind]}" for kind in differ)
    print(
        f"WARNING: {plan.path} asks for seeds of {asked}, and its runs had {had} ({file}): those of the runs are "
        "taken; --seeds N takes others",
        file=sys.stderr,
    )
    return _seeds(run, planned)


def recorded(run_root: Path, name: str) -> StudyPlan | None:
    """The plan that the last run of a study has left; None where there is none, or with a warning none to read."""
    file = study_folder(run_root, name) / RECORD
    try:
        return read_study_plan(file) if file.is_file() else None
    except DataError as error:
        print(f"WARNING: {error}: arms and seeds of earlier runs are not known", file=sys.stderr)
        return None


def plan_to_record(plan: StudyPlan, *, has_all_arms: bool, site: str | Path | None) -> StudyPlan:
    """What study.json is to hold once a plan is run.

    Args:
        plan: What is run.
        has_all_arms: Whether it has all arms of its file.
        site: A site file; None takes the default.
    """
    before = recorded(Path(plan.run_root), plan.name)
    had, planned = _replicates(before) if before is not None else {}, _replicates(plan)
    if has_all_arms and all(count <= planned.get(kind, 0) for kind, count in had.items()):
        whole = plan
    else:
        most = {kind: max(had.get(kind, 1), planned.get(kind, 1)) for kind in {*had, *planned}}
        whole = make_study_plan(plan.path, site=site, run_root=Path(plan.run_root), seeds=_seeds(most, {}))
    if before is not None and (change := what_changed(whole, before)):
        print(
            f"WARNING: {plan.path}: {change}; what was trained of it stays in {plan.run_root}/stages", file=sys.stderr
        )
    return whole


def write_record(folder: Path, plan: StudyPlan) -> None:
    """Writes study.json; `folder` is the study's, and nobody else runs it."""
    write_atomically(folder / RECORD, plan.to_json().encode())


def what_changed(plan: StudyPlan, record: StudyPlan) -> str:
    """What a study has no more that the plan of its last run had; "" where nothing is missing.

    Args:
        plan: Of all arms, as the file says now.
        record: As it was run.
    """
    arms, stages = {arm.id for arm in plan.arms}, {stage.stage_id for stage in plan.stages}
    gone = [arm.id for arm in record.arms if arm.id not in arms]
    chains = {arm.id: {one for chain in arm.chains for one in chain} for arm in record.arms if arm.id in arms}
    other = [arm for arm, of_arm in chains.items() if not of_arm <= stages]
    parts = [f"arms that are no longer in it: {', '.join(gone)}"] * bool(gone)
    parts += [f"arms that have other stages now: {', '.join(other)}"] * bool(other)
    return f"it has changed since its last run; {'; '.join(parts)}" if parts else ""


def _seeds(run: Mapping[str, int], planned: Mapping[str, int]) -> StageSeeds:
    """Replicates of each kind: those of a run, of what it left out the planned, and a multiple of the stage before."""
    most, counts = 1, {}
    for kind in STAGE_KINDS:
        counts[kind] = most = -(-run.get(kind, planned.get(kind, 1)) // most) * most
    return StageSeeds.model_validate(counts)


def _replicates(plan: StudyPlan) -> dict[str, int]:
    """How often each kind of stage is trained, of the kinds that the study has."""
    found = {kind: [stage.replicate for stage in plan.stages if stage.stage == kind] for kind in STAGE_KINDS}
    return {kind: max(numbers) + 1 for kind, numbers in found.items() if numbers}


def read_record(file: Path, run_root: Path | None) -> StudyPlan:
    """A plan that a run, or `study plan --json`, has written.

    A run names its run root from the folder in which it was begun. Who reads it elsewhere finds the run root by the
    record, which lies in `RUN_ROOT/studies/NAME/`.

    Args:
        file: It.
        run_root: Holds `stages/`; None: as said above.

    Raises:
        DataError: It cannot be read.
    """
    plan = read_study_plan(file)
    place = file.absolute()
    if run_root is None and place == study_folder(place.parents[2], plan.name) / RECORD:
        run_root = place.parents[2]
    if run_root is not None and run_root.resolve() != Path(plan.run_root).resolve():
        plan = plan.model_copy(update={"run_root": str(run_root)})
    if not Path(plan.run_root).is_dir():
        print(
            f"WARNING: {plan.run_root}, the run root that {file} names, is not there, so its results are not found; "
            "name it: --run-root DIR",
            file=sys.stderr,
        )
    return plan
