"""What a checkpoint says of itself, and whether a run may go on from it. Reads `plan.json` and `state.json` only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from data_tools.errors import DataError, RecipeError
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.file_list import checkpoints_of, damage_of

LAYOUT_KEYS = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "data_parallel_size",
    "use_distributed_optimizer",
)


def layout_of(plan: StagePlan) -> dict[str, int | bool]:
    """What must be equal for a checkpoint to be resumed bit for bit."""
    return {key: getattr(plan.layout, key) for key in LAYOUT_KEYS}


def describe_resume(path: Path, plan: StagePlan) -> str:
    """One sentence for the log: where a run goes on, and whether bit for bit."""
    step = path.name.removeprefix("step_")
    changed = _changed_layout(read_facts(path)["layout"], plan)
    if not changed:
        return f"goes on at step {step} from {path}"
    return (
        f"goes on at step {step} from {path}, in another layout ({', '.join(changed)}): "
        "sums are taken in another order, and random states are seeded anew from (seed, step)"
    )


def read_plan(path: Path) -> StagePlan:
    """Reads the plan that wrote a checkpoint.

    Raises:
        DataError: `path` is not a checkpoint of this project.
    """
    file = path / "plan.json"
    if not file.is_file():
        raise DataError(f"{path}: not a checkpoint: it has no plan.json. Name a folder …/checkpoints/step_N.")
    return StagePlan.model_validate_json(file.read_bytes())


def read_facts(path: Path) -> dict[str, Any]:
    """Reads `state.json` of a whole checkpoint: `state` (counters), `cursor`, `layout`, `optimizer`."""
    facts: dict[str, Any] = json.loads((path / "state.json").read_text())
    return facts


def differing_meaning(there: dict[str, Any], plan: StagePlan) -> list[str]:
    """One indented line for each key of the meaning that differs between a recorded stage and this one."""
    here = json.loads(json.dumps(plan.meaning))
    differing = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    return [f"  {key}: there {there.get(key)!r}, here {here.get(key)!r}" for key in differing]


def require_fit(path: Path, plan: StagePlan) -> None:
    """Refuses to resume what this run cannot go on from.

    Args:
        path: A whole `step_N` folder.
        plan: What is about to run.

    Raises:
        RecipeError: The checkpoint is of a stage with another meaning, or its format is bound to another layout.
    """
    _require_same_meaning(path, plan)
    _require_loadable_layout(path, plan)


def _require_same_meaning(path: Path, plan: StagePlan) -> None:
    there = read_plan(path)
    lines = differing_meaning(there.meaning, plan)
    if lines:
        raise RecipeError(
            f"{path}: is a checkpoint of {there.stage_id}, a stage with another meaning; nothing was loaded.\n"
            + "\n".join(lines)
            + f"\n  Move it away:  mv {path} {path.with_name(f'foreign_{path.name}')}"
        )


def _changed_layout(there: dict[str, Any], plan: StagePlan) -> list[str]:
    here = layout_of(plan)
    return [f"{key} {there[key]} -> {here[key]}" for key in LAYOUT_KEYS if there[key] != here[key]]


def _require_loadable_layout(path: Path, plan: StagePlan) -> None:
    facts = read_facts(path)
    there, step = facts["layout"], facts["state"]["step"]
    changed = _changed_layout(there, plan)
    if facts["optimizer"]["format"] == "fully_reshardable" or not changed:
        return
    sets = " ".join(f"--set parallel.{key}={json.dumps(there[key])}" for key in LAYOUT_KEYS if "data" not in key)
    processes = math.prod(there[key] for key in LAYOUT_KEYS if key.endswith("_size"))
    older = [other for other in checkpoints_of(path.parent) if _is_fully_reshardable(other, before=step)]
    newer = [other for other in checkpoints_of(path.parent) if older and _step_of(other) > _step_of(older[-1])]
    back = "".join(f"\n    mv {other} {other.with_name(f'bound_{other.name}')}" for other in newer)
    raise RecipeError(
        f"{path}: its optimizer state is dp_reshardable, which loads only in the layout that wrote it.\n"
        + "".join(f"  {line}\n" for line in changed)
        + f"  Go on there: {processes} processes with {sets}\n"
        f"  The last checkpoint of a run is always fully reshardable: add --set training.max_steps={step + 1}, and\n"
        "  come back in the new layout; or write checkpoint.optimizer_format: fully_reshardable from now on."
        + (f"\n  Or go back to {older[-1].name}, which is fully reshardable and whole:{back}" if older else "")
    )


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _is_fully_reshardable(path: Path, *, before: int) -> bool:
    if _step_of(path) >= before or damage_of(path):
        return False
    return bool(read_facts(path)["optimizer"]["format"] == "fully_reshardable")
