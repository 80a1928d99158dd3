"""Two recipes side by side: what differs, and whether the difference makes another stage."""

from __future__ import annotations

from pathlib import Path

from data_tools.errors import DataError
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.render import terminal
from megatron_ext.plan.render_table import frame
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.explain import Difference, differences
from megatron_ext.recipe.layer_pattern import parse_pattern
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.schema import UNRESOLVED


def print_comparison(first: LoadedRecipe, second: LoadedRecipe, *, run_root: Path | None = None) -> None:
    """Prints the keys that differ and a verdict.

    Args:
        first: A checked recipe.
        second: Another one.
        run_root: Where a parent named by its id lies; None takes the site's.

    Raises:
        RecipeError: One of the two cannot be planned.
    """
    console = terminal()
    found = differences(first, second)
    if found:
        table = frame("key", "part of", first.path, "from", second.path, "from")
        for difference in found:
            table.add_row(
                difference.key,
                _role(difference, first, second),
                difference.values[0],
                difference.origins[0],
                difference.values[1],
                difference.origins[1],
            )
        console.print(table, "", sep="\n")
    else:
        console.print("no key differs")
    console.print(_verdict(first, second, found, run_root), soft_wrap=True)


def _role(difference: Difference, first: LoadedRecipe, second: LoadedRecipe) -> str:
    """A pattern that is only cut elsewhere is placed differently; it is the same model."""
    patterns = [parse_pattern(loaded.recipe.model.hybrid_layer_pattern).symbols for loaded in (first, second)]
    is_only_cut = difference.key == "model.hybrid_layer_pattern" and patterns[0] == patterns[1]
    return "placement" if is_only_cut else difference.role


def _verdict(first: LoadedRecipe, second: LoadedRecipe, found: list[Difference], run_root: Path | None) -> str:
    try:
        plans = [make_stage_plan(loaded, may_be_provisional=True, run_root=run_root) for loaded in (first, second)]
    except DataError:
        roles = [_role(difference, first, second) for difference in found]
        count = sum(role != "placement" for role in roles)
        known = f"keys of the meaning that differ: {count or 'none'}"
        return f"stage ids are not known until the data is built; {known}"
    one, other = plans
    if one.stage_id == other.stage_id:
        return f"same stage id: {one.stage_id}{f', {_parent_of(one)}' if _parent_of(one) else ''}"
    return "different stages: " + " and ".join(
        f"{plan.stage_id}{f' ({_parent_of(plan)})' if _parent_of(plan) else ''}" for plan in plans
    )


def _parent_of(plan: StagePlan) -> str:
    if plan.behind is None:
        return f"init_from {UNRESOLVED}" if plan.awaits_weights else ""
    return f"{'continues' if plan.parent is not None else 'init_from'} {plan.behind.stage_id}"
