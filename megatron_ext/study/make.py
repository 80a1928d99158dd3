"""A study file into its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

from data_tools.errors import DataError, RecipeError, UsageError, UserError
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.problems import Origin, Problems
from megatron_ext.recipe.site_schema import SiteRecipe
from megatron_ext.recipe.study_load import LoadedArm, LoadedStudy, load_arm, load_study, no_such_arm
from megatron_ext.recipe.study_schema import STAGE_KINDS, FindingRecipe, StageKind, StageSeeds
from megatron_ext.study.claims import require_answerable
from megatron_ext.study.condition import arm_differences, between
from megatron_ext.study.nodes import PlannedStage, arm_plan, evaluation_nodes, stage_node, study_totals
from megatron_ext.study.planner import Planner
from megatron_ext.study.questions import require_judgeable
from megatron_ext.study.study_plan import Hardware, StageNode, StudyPlan

Chain = Sequence[Sequence[PlannedStage]]
"""The stages of an arm, once for each replicate of its last one."""


@dataclass(frozen=True)
class PlannedArm:
    """An arm that is to be trained alone.

    Attributes:
        id: Its name.
        site: Where it is trained.
        run_root: Folder that holds `stages/`.
        stages: First to last.
    """

    id: str
    site: SiteRecipe
    run_root: Path
    stages: tuple[StagePlan, ...]


def make_study_plan(
    path: str | Path,
    *,
    site: str | Path | None = None,
    run_root: Path | None = None,
    seeds: int | StageSeeds | None = None,
    may_be_provisional: bool = True,
    arms: Sequence[str] = (),
    hardware: Hardware | None = None,
) -> StudyPlan:
    """Decides everything about a study.

    Args:
        path: A study file.
        site: A site file; None takes the default.
        run_root: Folder that holds `stages/`; None takes the site's.
        seeds: Replicates of every stage, or by kind of stage; None takes the study's.
        may_be_provisional: Whether declared sizes may stand for data; if not, what stages share is kept in the store.
        arms: Ids, `*` for any letters: of these alone are the plan and its findings; all are compared. () takes all.
        hardware: Counts GPU-hours, and memory as on GPUs.

    Raises:
        RecipeError: What cannot be carried out, compared, or judged as written.
        DataError: Data that is missing, damaged, or does not fit.
        UsageError: No arm of such an id.
    """
    study = load_study(path)
    chosen = [arm.id for arm in _chosen(study, arms)]
    planner = Planner(site, run_root, _counts(study, seeds), may_be_provisional)
    chains = _all_chains(planner, study.arms)
    if seeds is None:
        _check_seeds(study, chains)
    first = {arm_id: found[0] for arm_id, found in chains.items()}
    _refuse_idle_settings({arm.id: (arm, first[arm.id]) for arm in study.arms})
    _refuse_one_arm_twice(study, first)
    require_answerable(study, first)
    require_judgeable(study, first)
    differences = between(arm_differences(study, first), chosen)
    plan = _joined(study, {arm: chains[arm] for arm in chosen}, hardware, run_root=planner.place)
    return plan.model_copy(update={"differences": differences})


def make_arm_plan(
    path: str | Path,
    *,
    site: str | Path | None = None,
    run_root: Path | None = None,
    overrides: Sequence[str] = (),
    world_size: int | None = None,
    may_be_provisional: bool = True,
) -> PlannedArm:
    """Decides everything about one arm.

    Args:
        path: An arm file.
        site: A site file; None takes the default.
        run_root: Folder that holds `stages/`; None takes the site's.
        overrides: `key=value` options, set over all its recipes.
        world_size: Processes of the run; None takes the fewest that each stage's layout needs.
        may_be_provisional: As for `make_study_plan`.

    Raises:
        RecipeError: What cannot be carried out as written.
        DataError: Data that is missing, damaged, or does not fit.
    """
    arm = load_arm(path)
    arm = replace(arm, overrides={kind: (*arm.overrides[kind], *overrides) for kind in STAGE_KINDS})
    planner = Planner(site, run_root, StageSeeds(), may_be_provisional, world_size)
    (chain,) = planner.chains(arm)
    _refuse_idle_settings({arm.id: (arm, chain)})
    return PlannedArm(arm.id, chain[0].loaded.site, Path(planner.place), tuple(stage.plan for stage in chain))


def _refuse_idle_settings(chains: Mapping[str, tuple[LoadedArm, Sequence[PlannedStage]]]) -> None:
    """Refuses what a file sets over stages of a kind that no arm of it has.

    Raises:
        RecipeError: It does nothing.
    """
    idle: dict[Origin, StageKind] = {}
    used: set[Origin] = set()
    for arm, chain in chains.values():
        kinds = {stage.plan.stage for stage in chain}
        for kind in STAGE_KINDS:
            places = [arm.places[one] for one in arm.overrides[kind] if one in arm.places]
            used |= set(places) if kind in kinds else set()
            idle |= {} if kind in kinds else dict.fromkeys(places, kind)
    for place, kind in idle.items():
        if place not in used:
            raise RecipeError(f"{place}: set.{kind}: no arm that it is for has a stage of this kind; remove it")


def _joined(study: LoadedStudy, chains: Mapping[str, Chain], hardware: Hardware | None, *, run_root: str) -> StudyPlan:
    """All that was decided of some arms, but for what they differ in."""
    nodes = _nodes(chains, hardware)
    by_id = {node.stage_id: node for node in nodes}
    arm_plans = tuple(arm_plan(arm, chains[arm.id], by_id) for arm in study.arms if arm.id in chains)
    evaluations = tuple(evaluation_nodes(study.suites, arm_plans, nodes))
    recipe = study.recipe
    return StudyPlan(
        name=recipe.study,
        path=study.path,
        note=recipe.note,
        run_root=run_root,
        arms=arm_plans,
        stages=nodes,
        evaluations=evaluations,
        varies=recipe.varies,
        baseline=recipe.baseline if recipe.baseline in chains else None,
        differences=(),
        findings=tuple(one for one in recipe.findings if one.arms <= chains.keys()),
        findings_left_out=tuple(one.name for one in recipe.findings if not one.arms <= chains.keys()),
        findings_notes=recipe.findings_notes,
        main_metrics=_main_metrics(recipe.findings),
        totals=study_totals(arm_plans, nodes, evaluations),
        hardware=hardware,
    )


def _main_metrics(findings: Sequence[FindingRecipe]) -> dict[StageKind, str]:
    """Of each kind of stage the metric that most comparisons ask for."""
    asked = {kind: [c.metric for one in findings for c in one.comparisons if c.stage == kind] for kind in STAGE_KINDS}
    return {kind: max(metrics, key=metrics.count) for kind, metrics in asked.items() if metrics}


def _counts(study: LoadedStudy, seeds: int | StageSeeds | None) -> StageSeeds:
    if isinstance(seeds, int):
        return StageSeeds(pretrain=seeds, sft=seeds, rl=seeds)
    return seeds or study.recipe.seeds


def _check_seeds(study: LoadedStudy, chains: Mapping[str, Chain]) -> None:
    """Refuses replicates of a kind that cannot share out those of the kind before it.

    Raises:
        RecipeError: With all of them.
    """
    there = {stage.plan.stage for of_arm in chains.values() for stage in of_arm[0]}
    kinds = [kind for kind in STAGE_KINDS if kind in there]
    problems = Problems()
    for before, kind in pairwise(kinds):
        fewer, more = (getattr(study.recipe.seeds, one) for one in (before, kind))
        if more % fewer:
            fitting = ", ".join(str(fewer * times) for times in range(max(more // fewer, 1), more // fewer + 2))
            message = (
                f"{more} and seeds.{before} {fewer}: as many replicates must begin from each of the stage before; "
                f"write a multiple of {fewer}, such as {fitting}"
            )
            problems.add(study.origin(("seeds", kind)), ("seeds", kind), message)
    problems.raise_recipe_error()


def _refuse_one_arm_twice(study: LoadedStudy, chains: Mapping[str, Sequence[PlannedStage]]) -> None:
    """Refuses two arms of the same stages: whatever the study says of one is said of the other.

    Raises:
        RecipeError: With all of them.
    """
    seen: dict[tuple[str, ...], str] = {}
    problems = Problems()
    for arm in study.arms:
        first = seen.setdefault(tuple(stage.plan.stage_id for stage in chains[arm.id]), arm.id)
        if first != arm.id:
            message = f"has the same stages as arm {first}: {', '.join(arm.recipes)}; mend one of them, or remove it"
            problems.add(arm.origin, (arm.id,), message)
    problems.raise_recipe_error()


def _all_chains(planner: Planner, arms: Sequence[LoadedArm]) -> dict[str, list[list[PlannedStage]]]:
    """The chains of all arms, or everything that is wrong with them, each once.

    Arms that end alike are planned one after another: rows that were packed for one fine-tuning serve the next, and
    packing the paper's 4.8M conversations takes seconds.

    Raises:
        RecipeError: An arm cannot be carried out as written.
        DataError: Data is missing, and nothing else is wrong.
    """
    chains: dict[str, list[list[PlannedStage]]] = {}
    errors: dict[str, UserError] = {}
    for arm in sorted(arms, key=lambda arm: arm.recipes[::-1]):
        try:
            chains[arm.id] = planner.chains(arm)
        except (RecipeError, DataError) as error:
            errors.setdefault(str(error), error)
    if not errors:
        return {arm.id: chains[arm.id] for arm in arms}
    is_data = all(isinstance(error, DataError) for error in errors.values())
    raise (DataError if is_data else RecipeError)("\n".join(errors))


def _nodes(chains: Mapping[str, Chain], hardware: Hardware | None) -> tuple[StageNode, ...]:
    """The stages that some arms need, each with these arms, in the order in which arms come to them."""
    stages: dict[str, PlannedStage] = {}
    serving: dict[str, dict[str, None]] = {}
    for arm, of_arm in chains.items():
        for stage in (stage for chain in of_arm for stage in chain):
            stages[stage.plan.stage_id] = stage
            serving.setdefault(stage.plan.stage_id, {})[arm] = None
    return tuple(stage_node(stages[one], arms=tuple(arms), hardware=hardware) for one, arms in serving.items())


def _chosen(study: LoadedStudy, patterns: Sequence[str]) -> list[LoadedArm]:
    for pattern in patterns:
        if not any(fnmatchcase(arm.id, pattern) for arm in study.arms):
            raise UsageError(f"--arms {no_such_arm(pattern, (arm.id for arm in study.arms))}")
    return [arm for arm in study.arms if not patterns or any(fnmatchcase(arm.id, one) for one in patterns)]
