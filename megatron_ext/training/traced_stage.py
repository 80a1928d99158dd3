"""The plan of a stage of which a step is asked for, and what can be refused of it before torch is loaded."""

from __future__ import annotations

import shlex
from pathlib import Path

from data_tools.dataset import is_built
from data_tools.errors import DataError, UsageError
from megatron_ext.plan.stage_plan import StagePlan


def read_traced_stage(folder: Path, step: int) -> StagePlan:
    """The plan of a stage that has such a step, and whose data is there.

    Args:
        folder: A stage's folder, finished or not.
        step: From 1; it need not be trained yet.

    Raises:
        UsageError: The stage has no such step.
        DataError: There is no stage, it reads no documents, or its data is not found from here.
    """
    plan = _read_plan(folder)
    if not 1 <= step <= plan.batch.total_steps:
        raise UsageError(f"--step {step}: {plan.stage_id} has steps 1 to {plan.batch.total_steps}")
    _require_data(folder, plan)
    return plan


def _read_plan(folder: Path) -> StagePlan:
    file = folder / "plan.json"
    try:
        plan = StagePlan.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file}: missing; name a stage's folder, …/stages/ID") from None
    except ValueError:
        raise DataError(f"{file}: damaged or of another version; run the recipe again to write it anew") from None
    if plan.rl is not None:
        raise DataError(
            f"{file}: an rl stage reads what it samples, and no document; its completions: megatron-ext rollouts "
            f"{shlex.quote(str(folder))} --step N"
        )
    return plan


def _require_data(folder: Path, plan: StagePlan) -> None:
    """Refuses paths that lead nowhere from here, though the run that wrote them found its data there."""
    prefixes = [Path(source.prefix) for source in plan.data.sources]
    missing = next((prefix for prefix in prefixes if not prefix.is_absolute() and not is_built(prefix)), None)
    if missing is None:
        return
    home = next((parent for parent in folder.resolve().parents if is_built(parent / missing)), None)
    remedy = (
        f"It is there from {home}: cd {home}"
        if home is not None
        else "Change to the folder of the run, or restore the data"
    )
    raise DataError(
        f"{missing}: not found from {Path.cwd()}; the paths of {folder / 'plan.json'} are relative to the working "
        f"directory of the run. {remedy}, and name the stage's folder as {folder.resolve()}"
    )
