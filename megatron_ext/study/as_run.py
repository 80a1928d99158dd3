"""A study as it was run last: with the replicates of that run, and where that run left its results."""

from __future__ import annotations

import sys
from pathlib import Path

from data_tools.errors import DataError
from megatron_ext.recipe.study_schema import STAGE_KINDS, StageSeeds
from megatron_ext.study.launcher import study_folder
from megatron_ext.study.study_plan import StudyPlan, read_study_plan

RECORD = "study.json"


def seeds_of_run(plan: StudyPlan) -> StageSeeds | None:
    """The replicates that the last run of a study was asked for; None where they are those of its plan.

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
        f"WARNING: {plan.path} asks for seeds of {asked}, and its last run had {had} ({file}): those of the run are "
        "taken; --seeds N takes others",
        file=sys.stderr,
    )
    most, counts = 1, {}
    for kind in STAGE_KINDS:  # kinds that the run left out have a replicate for each of the stage before
        counts[kind] = most = max(most, run.get(kind, planned.get(kind, 1)))
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
