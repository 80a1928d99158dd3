"""A loaded recipe into a stage plan: everything is decided here, before a device is touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import RecipeError
from megatron_ext.plan.batch import plan_batch, plan_cadence, plan_phases
from megatron_ext.plan.cost import plan_cost
from megatron_ext.plan.data import plan_data
from megatron_ext.plan.execution import plan_execution
from megatron_ext.plan.init_from import INIT_FROM, check_permission, check_weights, other_numerics
from megatron_ext.plan.layouts import plan_layout
from megatron_ext.plan.lineage import (
    chain_behind,
    check_common,
    check_kind,
    check_packing,
    check_schedule,
    read_stage_plan,
)
from megatron_ext.plan.meaning import stage_id, stage_meaning
from megatron_ext.plan.new_tokens import plan_new_tokens
from megatron_ext.plan.rl import PromptStage, plan_rl, with_budget
from megatron_ext.plan.rl_batch import plan_rl_batch
from megatron_ext.plan.schedule import plan_schedule
from megatron_ext.plan.sft import plan_sft
from megatron_ext.plan.sft_batch import plan_sft_batch
from megatron_ext.plan.sft_declared import PackedStage
from megatron_ext.plan.sizes import model_size
from megatron_ext.plan.stage_plan import (
    BatchPlan,
    CadencePlan,
    ExecutionPlan,
    LayoutPlan,
    SchedulePlan,
    StagePlan,
)
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems


@dataclass(frozen=True)
class Draft:
    """The part of a plan that needs no data.

    Attributes:
        stage: Its kind.
        phase_samples: Samples of each phase.
        roundings: One sentence for each number that had to be rounded so far.
    """

    stage: str
    layout: LayoutPlan
    batch: BatchPlan
    phase_samples: tuple[int, ...]
    schedule: SchedulePlan
    cadence: CadencePlan
    execution: ExecutionPlan
    roundings: tuple[str, ...]


def draft_plan(
    loaded: LoadedRecipe,
    *,
    world_size: int | None = None,
    before: Draft | StagePlan | None = None,
    run_root: Path | None = None,
    packed: PackedStage | PromptStage | None = None,
) -> Draft:
    """Decides what can be decided without data.

    Args:
        loaded: What was asked.
        world_size: Processes of the run; None takes the fewest that the layout needs.
        before: The stage that this one continues; None finds it (`draft_before`).
        run_root: Where a parent named by its id lies; None takes the site's.
        packed: The rows of an sft stage, or the prompts of an rl stage; None supposes a row for each conversation, and
            knows no prompts.

    Raises:
        RecipeError: Everything that cannot be carried out as written.
    """
    problems = Problems()
    roundings: list[str] = []
    if before is None:
        before = draft_before(loaded, run_root=run_root)
    if before is not None:
        check_kind(loaded, before.stage)
    layout = plan_layout(loaded, problems, world_size=world_size)
    if loaded.recipe.stage == "rl":
        size = packed.size if isinstance(packed, PromptStage) else None
        batch = plan_rl_batch(loaded, layout, problems, roundings, size=size)
    elif loaded.recipe.stage == "sft":
        assert not isinstance(packed, PromptStage), "an sft stage reads rows"
        batch = plan_sft_batch(loaded, layout, roundings, packed)
    else:
        batch = plan_batch(loaded, layout, problems, roundings, before=before.batch if before is not None else None)
    phase_samples = plan_phases(loaded, batch, problems, roundings)
    schedule = plan_schedule(loaded, batch, problems, roundings, before=before.schedule if before is not None else None)
    if before is not None:
        check_schedule(loaded, schedule, before.schedule, problems)
    cadence = plan_cadence(loaded.recipe, batch, roundings)
    execution = plan_execution(loaded, layout, batch, problems)
    problems.raise_recipe_error()
    return Draft(loaded.recipe.stage, layout, batch, phase_samples, schedule, cadence, execution, tuple(roundings))


def draft_before(loaded: LoadedRecipe, *, run_root: Path | None = None) -> Draft | StagePlan | None:
    """The numbers of the stage that a recipe continues: drafted where it names a recipe, read where it names an id.

    Raises:
        RecipeError: The parent cannot be carried out, or is not in this place's run_root.
    """
    if loaded.parent is not None:
        return draft_plan(loaded.parent, run_root=run_root)
    return _parent_by_id(loaded, run_root)


def _parent_by_id(loaded: LoadedRecipe, run_root: Path | None) -> StagePlan | None:
    if loaded.recipe.parent is None:
        return None
    return read_stage_plan(loaded, loaded.recipe.parent, run_root or Path(loaded.site.run_root))


def _plan_of_giver(loaded: LoadedRecipe, run_root: Path | None, *, may_be_provisional: bool) -> StagePlan | None:
    """The stage whose weights a recipe begins with; None where it needs none, or may be planned without.

    Raises:
        RecipeError: It is not named, and the plan is to run; or there is no such stage.
    """
    recipe = loaded.recipe
    if recipe.awaits_weights:
        if may_be_provisional:
            return None
        raise RecipeError(
            f"{loaded.origin(INIT_FROM)}: init_from: unresolved; it can be planned so, and not run: add "
            "--set init_from=STAGE, the recipe or the id of the stage whose weights it begins with"
        )
    if loaded.weights_of is not None:
        return make_stage_plan(loaded.weights_of, may_be_provisional=may_be_provisional, run_root=run_root)
    if recipe.init_from is None:
        return None
    return read_stage_plan(loaded, recipe.init_from, run_root or Path(loaded.site.run_root), key=INIT_FROM)


def make_stage_plan(
    loaded: LoadedRecipe,
    *,
    world_size: int | None = None,
    may_be_provisional: bool = False,
    run_root: Path | None = None,
) -> StagePlan:
    """Decides everything about a stage.

    Args:
        loaded: What was asked.
        world_size: Processes of the run; None takes the fewest that the layout needs.
        may_be_provisional: Whether `declared_tokens` may stand for data that is not built yet; if not, the stage is
            about to run, and what it would have to compute again is kept in the store.
        run_root: Where a parent named by its id lies, and what is prepared; None takes the site's.

    Returns:
        The plan; equal recipes and data give the same `stage_id` whatever the layout is.

    Raises:
        RecipeError: What cannot be carried out as written, a source that cannot supply its share included.
        DataError: Data that is missing, damaged, or does not fit.
    """
    parent: StagePlan | None
    if loaded.parent is not None:
        parent = make_stage_plan(loaded.parent, may_be_provisional=may_be_provisional, run_root=run_root)
    else:
        parent = _parent_by_id(loaded, run_root)
    if parent is not None:
        check_kind(loaded, parent.stage)
        check_packing(loaded, parent)
    behind = chain_behind(parent) if parent is not None else None
    giver = _plan_of_giver(loaded, run_root, may_be_provisional=may_be_provisional)
    init_from = chain_behind(giver, gives="weights") if giver is not None else None
    trained_on = [source for before in (behind, init_from) if before is not None for source in before.sources]
    notes: list[str] = []
    packed: PackedStage | PromptStage | None = None
    if loaded.recipe.stage == "rl":
        packed = plan_rl(loaded, giver, notes, may_be_provisional=may_be_provisional)
    if loaded.recipe.stage == "sft":
        store = str(run_root or loaded.site.run_root)
        packed = plan_sft(loaded, notes, store=store, is_kept=not may_be_provisional, trained_on=trained_on)
    draft = draft_plan(loaded, world_size=world_size, before=parent, packed=packed)
    roundings = [*notes, *draft.roundings, *(other_numerics(giver) if giver is not None else ())]
    recipe = loaded.recipe
    data = (
        packed.data
        if packed is not None
        else plan_data(
            loaded,
            draft.batch,
            draft.cadence,
            roundings,
            phase_samples=draft.phase_samples,
            store=run_root or Path(loaded.site.run_root),
            parent=behind,
            trained_on=trained_on,
            may_be_provisional=may_be_provisional,
        )
    )
    new_tokens = plan_new_tokens(loaded, data, giver, run_root=run_root or Path(loaded.site.run_root))
    rl = None
    if isinstance(packed, PromptStage):
        data, rl = with_budget(data, prompts=draft.batch.total_samples), packed.rl
    meaning = stage_meaning(
        recipe, data=data, batch=draft.batch, schedule=draft.schedule, parent=behind, init_from=init_from, rl=rl
    )
    identity = stage_id(meaning)
    is_provisional = (
        data.is_provisional
        or recipe.awaits_weights
        or any(before.is_provisional for before in (behind, init_from) if before is not None)
    )
    plan = StagePlan(
        stage=recipe.stage,
        stage_id=identity.replace("-", "-provisional-", 1) if is_provisional else identity,
        recipe=loaded.path,
        parent=behind,
        init_from=init_from,
        new_tokens=new_tokens,
        model=recipe.model,
        model_size=model_size(recipe.model),
        data=data,
        sft=packed.sft if isinstance(packed, PackedStage) else None,
        rl=rl,
        batch=draft.batch,
        schedule=draft.schedule,
        optimizer=recipe.optimizer,
        precision=recipe.precision,
        seed=recipe.seed,
        layout=draft.layout,
        cadence=draft.cadence,
        execution=draft.execution,
        cost=plan_cost(
            recipe.model,
            draft.layout,
            draft.batch,
            draft.cadence,
            draft.execution,
            precision=recipe.precision,
            rl=recipe.rl,
        ),
        logging=recipe.logging,
        roundings=tuple(roundings),
        meaning=meaning,
    )
    if parent is not None:
        check_common(loaded, plan, parent)
    if giver is not None:
        check_weights(loaded, plan, giver, run_root=run_root or Path(loaded.site.run_root))
    if plan.behind is not None:
        check_permission(loaded, plan, plan.behind)
    return plan
