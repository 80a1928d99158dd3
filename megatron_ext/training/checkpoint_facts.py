"""What a checkpoint says of itself, and whether a run may go on from it. Reads `plan.json` and `state.json` only."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_tools.errors import RecipeError
from megatron_ext.models.backends import choose_backend
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.file_list import checkpoints_of, damage_of, read_plan

LAYOUT_KEYS = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "data_parallel_size",
    "use_distributed_optimizer",
)
_ORDER_KEYS = {"backend": "training.backend", "hybrid_layer_pattern": "model.hybrid_layer_pattern"}
"""What else orders a rank's parameters, and the recipe key that sets it: `dp_reshardable` slices go by that order."""


def layout_of(plan: StagePlan) -> dict[str, int | bool]:
    """What must be equal for the random states of the ranks to be taken up again."""
    return {key: getattr(plan.layout, key) for key in LAYOUT_KEYS}


def describe_resume(path: Path, plan: StagePlan) -> str:
    """One sentence for the log: where a run goes on, and whether bit for bit."""
    is_parents = plan.behind is not None and path.parents[1].name == plan.behind.stage_id
    if is_parents and plan.init_from is not None:
        return f"begins with the weights of {path}; optimizer, data and learning rate begin anew"
    layout, order = _changed_layout(path, plan), _changed_order(path, plan)
    begin = f"goes on {'behind the parent stage' if is_parents else f'at step {_step_of(path)}'} from {path}"
    if not layout and not order:
        return begin
    if not layout:
        return f"{begin}, not bit for bit ({', '.join(order)}): sums are taken in another order"
    return (
        f"{begin}, in another layout ({', '.join([*layout, *order])}): "
        "sums are taken in another order, and random states are seeded anew from (seed, step)"
    )


def read_facts(path: Path) -> dict[str, Any]:
    """Reads `state.json` of a whole checkpoint: `state` (counters), `cursor`, `layout`, `optimizer`."""
    facts: dict[str, Any] = json.loads((path / "state.json").read_text())
    return facts


def differing_meaning(there: dict[str, Any], plan: StagePlan) -> list[str]:
    """One indented line for each key of the meaning that differs between a recorded stage and this one."""
    here = json.loads(json.dumps(plan.meaning))
    differing = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    return [f"  {key}: there {there.get(key)!r}, here {here.get(key)!r}" for key in differing]


def require_fit(path: Path, plan: StagePlan, *, look: Callable[[Path], list[str]] = damage_of) -> None:
    """Refuses to resume what this run cannot go on from.

    Args:
        path: A whole `step_N` folder.
        plan: What is about to run.
        look: Finds the damage of an older checkpoint; all ranks together where there are several.

    Raises:
        RecipeError: The checkpoint is of a stage with another meaning, or its format is bound to another layout.
    """
    _require_same_meaning(path, plan)
    _require_loadable_layout(path, plan, look)


def _require_same_meaning(path: Path, plan: StagePlan) -> None:
    there = read_plan(path)
    lines = differing_meaning(there.meaning, plan)
    if lines:
        raise RecipeError(
            f"{path}: is a checkpoint of {there.stage_id}, a stage with another meaning; nothing was loaded.\n"
            + "\n".join(lines)
            + f"\n  Move it away:  mv {path} {path.with_name(f'foreign_{path.name}')}"
        )


def _changed_layout(path: Path, plan: StagePlan) -> list[str]:
    there, here = read_facts(path)["layout"], layout_of(plan)
    return [f"{key} {there[key]} -> {here[key]}" for key in LAYOUT_KEYS if there[key] != here[key]]


def _order_of_writer(path: Path) -> dict[str, str]:
    layout = read_plan(path).layout
    return {"backend": read_facts(path)["backend"], "hybrid_layer_pattern": layout.hybrid_layer_pattern}


def _changed_order(path: Path, plan: StagePlan) -> list[str]:
    there = _order_of_writer(path)
    here = {"backend": choose_backend(plan).name, "hybrid_layer_pattern": plan.layout.hybrid_layer_pattern}
    return [f"{key} {there[key]} -> {here[key]}" for key in _ORDER_KEYS if there[key] != here[key]]


def _require_loadable_layout(path: Path, plan: StagePlan, look: Callable[[Path], list[str]]) -> None:
    if read_facts(path)["optimizer"]["format"] == "fully_reshardable":
        return
    order = _changed_order(path, plan)
    changed = [*_changed_layout(path, plan), *order]
    if not changed:
        return
    siblings = checkpoints_of(path.parent)
    older = [other for other in reversed(siblings) if _step_of(other) < _step_of(path)]
    whole = next((other for other in older if _is_fully_reshardable(other) and not look(other)), None)
    newer = [other for other in siblings if whole and _step_of(other) > _step_of(whole)]
    back = "".join(f"\n    mv {other} {other.with_name(f'bound_{other.name}')}" for other in newer)
    raise RecipeError(
        f"{path}: its optimizer state is dp_reshardable, which loads only in the layout that wrote it.\n"
        + "".join(f"  {line}\n" for line in changed)
        + f"  Go on there: {_command_of_writer(path, with_order=bool(order))}\n"
        "  The last checkpoint of a run is always fully reshardable: add "
        f"--set training.max_steps={_step_of(path) + 1}, and\n"
        "  come back in the new layout; or write checkpoint.optimizer_format: fully_reshardable from now on."
        + (f"\n  Or go back to {whole.name}, which is fully reshardable and whole:{back}" if whole else "")
    )


def _command_of_writer(path: Path, *, with_order: bool) -> str:
    there = read_facts(path)["layout"]
    processes = math.prod(there[key] for key in LAYOUT_KEYS if key.endswith("_size"))
    sets = [f"parallel.{key}={json.dumps(there[key])}" for key in LAYOUT_KEYS if "data" not in key]
    if with_order:
        sets += [f"{_ORDER_KEYS[key]}={json.dumps(value)}" for key, value in _order_of_writer(path).items()]
    return f"{processes} processes with {' '.join(f'--set {shlex.quote(item)}' for item in sets)}"


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _is_fully_reshardable(path: Path) -> bool:
    """What its state.json says; whether that is whole is asked next, of the few that are candidates."""
    try:
        return bool(read_facts(path)["optimizer"]["format"] == "fully_reshardable")
    except (OSError, ValueError, KeyError, TypeError):
        return False
