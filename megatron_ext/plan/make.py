"""A loaded recipe into a stage plan: everything is decided here, before a device is touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import RecipeError
from megatron_ext.plan.batch import plan_batch, plan_cadence, plan_phases
from megatron_ext.plan.cost import plan_cost
from megatron_ext.plan.data import plan_data
from megatron_ext.plan.execution import plan_execution
from megatron_ext.plan.fp8 import check_fp8
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
    CostPlan,
    DataPlan,
    ExecutionPlan,
    LayoutPlan,
    ParentPlan,
    SchedulePlan,
    SourceRead,
    StagePlan,
)
from megatron_ext.plan.te_options import check_te_options
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
    check_fp8(loaded, problems)
    check_te_options(loaded, problems)
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
    before: StagePlan | None = None,
) -> StagePlan:
    """Decides everything about a stage.

    Args:
        loaded: What was asked.
        world_size: Processes of the run; None takes the fewest that the layout needs.
        may_be_provisional: Whether `declared_tokens` may stand for data that is not built yet; if not, the stage is
            about to run, and what it would have to compute again is kept in the store.
        run_root: Where a parent named by its id lies, and what is prepared; None takes the site's.
        before: The stage that this one begins from, where it is planned already and the recipe names it by its id.

    Returns:
        The plan; equal recipes and data give the same `stage_id` whatever the layout is.

    Raises:
        RecipeError: What cannot be carried out as written, a source that cannot supply its share included.
        DataError: Data that is missing, damaged, or does not fit.
    """
    place = Place(run_root or Path(loaded.site.run_root), may_be_provisional)
    parent, giver = _stages_before(loaded, place, before)
    behind = chain_behind(parent) if parent is not None else None
    init_from = chain_behind(giver, gives="weights") if giver is not None else None
    notes: list[str] = []
    packed = _plan_packed(loaded, place, notes, giver=giver, behind=(behind, init_from))
    draft = draft_plan(loaded, world_size=world_size, before=parent, packed=packed)
    roundings = [*notes, *draft.roundings, *(other_numerics(giver) if giver is not None else ())]
    data = packed.data if packed is not None else _plan_blend(loaded, place, draft, roundings, (behind, init_from))
    new_tokens = plan_new_tokens(loaded, data, giver, run_root=place.run_root)
    if isinstance(packed, PromptStage):
        data = with_budget(data, prompts=draft.batch.total_samples)
    plan = _joined(loaded, draft, packed, data=data, parent=behind, init_from=init_from).model_copy(
        update={"new_tokens": new_tokens, "roundings": tuple(roundings)}
    )
    if parent is not None:
        check_common(loaded, plan, parent)
    if giver is not None:
        check_weights(loaded, plan, giver, run_root=place.run_root)
    if plan.behind is not None:
        check_permission(loaded, plan, plan.behind)
    return plan


@dataclass(frozen=True)
class Place:
    """Where stages and what is prepared lie, and whether declared sizes do."""

    run_root: Path
    may_be_provisional: bool


def _stages_before(
    loaded: LoadedRecipe, place: Place, before: StagePlan | None
) -> tuple[StagePlan | None, StagePlan | None]:
    """The stage that a recipe continues, and the one whose weights it begins with; at most one of them is there.

    Raises:
        RecipeError: There is no such stage, or it cannot be continued by this one.
    """
    recipe, parent, giver = loaded.recipe, None, None
    if before is not None:
        assert before.stage_id in (recipe.parent, recipe.init_from), f"{loaded.path} names another stage"
        parent, giver = (before, None) if recipe.parent is not None else (None, before)
    elif loaded.parent is not None:
        parent = make_stage_plan(loaded.parent, may_be_provisional=place.may_be_provisional, run_root=place.run_root)
    else:
        parent = _parent_by_id(loaded, place.run_root)
        giver = _plan_of_giver(loaded, place.run_root, may_be_provisional=place.may_be_provisional)
    if parent is not None:
        check_kind(loaded, parent.stage)
        check_packing(loaded, parent)
    return parent, giver


Behind = tuple[ParentPlan | None, ParentPlan | None]


def _trained_on(behind: Behind) -> list[SourceRead]:
    return [source for before in behind if before is not None for source in before.sources]


def _plan_packed(
    loaded: LoadedRecipe, place: Place, notes: list[str], *, giver: StagePlan | None, behind: Behind
) -> PackedStage | PromptStage | None:
    """The rows of an sft stage, or the prompts of an rl stage."""
    if loaded.recipe.stage == "rl":
        return plan_rl(loaded, giver, notes, may_be_provisional=place.may_be_provisional)
    if loaded.recipe.stage == "sft":
        is_kept = not place.may_be_provisional
        return plan_sft(loaded, notes, store=str(place.run_root), is_kept=is_kept, trained_on=_trained_on(behind))
    return None


def _plan_blend(loaded: LoadedRecipe, place: Place, draft: Draft, roundings: list[str], behind: Behind) -> DataPlan:
    """What a pretrain stage reads."""
    return plan_data(
        loaded,
        draft.batch,
        draft.cadence,
        roundings,
        phase_samples=draft.phase_samples,
        store=place.run_root,
        parent=behind[0],
        trained_on=_trained_on(behind),
        may_be_provisional=place.may_be_provisional,
    )


def _joined(
    loaded: LoadedRecipe,
    draft: Draft,
    packed: PackedStage | PromptStage | None,
    *,
    data: DataPlan,
    parent: ParentPlan | None,
    init_from: ParentPlan | None,
) -> StagePlan:
    """All that was decided, under its id."""
    recipe = loaded.recipe
    rl = packed.rl if isinstance(packed, PromptStage) else None
    meaning = stage_meaning(
        recipe, data=data, batch=draft.batch, schedule=draft.schedule, parent=parent, init_from=init_from, rl=rl
    )
    identity = stage_id(meaning)
    is_provisional = (
        data.is_provisional
        or recipe.awaits_weights
        or any(before.is_provisional for before in (parent, init_from) if before is not None)
    )
    return StagePlan(
        stage=recipe.stage,
        stage_id=identity.replace("-", "-provisional-", 1) if is_provisional else identity,
        recipe=loaded.path,
        parent=parent,
        init_from=init_from,
        model=recipe.model,
        model_size=model_size(recipe.model),
        data=data,
        sft=packed.sft if isinstance(packed, PackedStage) else None,
        rl=rl,
        batch=draft.batch,
        schedule=draft.schedule,
        optimizer=recipe.optimizer,
        precision=recipe.precision,
        fp8=recipe.fp8,
        seed=recipe.seed,
        layout=draft.layout,
        cadence=draft.cadence,
        execution=draft.execution,
        cost=_cost(loaded, draft),
        logging=recipe.logging,
        roundings=(),
        meaning=meaning,
    )


def _cost(loaded: LoadedRecipe, draft: Draft) -> CostPlan:
    recipe = loaded.recipe
    return plan_cost(
        recipe.model,
        draft.layout,
        draft.batch,
        draft.cadence,
        draft.execution,
        precision=recipe.precision,
        rl=recipe.rl,
        fp8=recipe.fp8,
    )
