"""A study file into its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from data_tools.errors import DataError, RecipeError, UsageError, UserError
from data_tools.strict_yaml import nearest
from megatron_ext.recipe.study_load import LoadedArm, LoadedStudy, load_arm, load_study
from megatron_ext.recipe.study_schema import STAGE_KINDS, FindingRecipe, StageKind, StageSeeds
from megatron_ext.study.claims import require_answerable
from megatron_ext.study.condition import arm_differences
from megatron_ext.study.nodes import PlannedStage, arm_plan, evaluation_nodes, stage_node, study_totals
from megatron_ext.study.planner import Planner
from megatron_ext.study.study_plan import Hardware, StageNode, StudyPlan

Chains = Mapping[str, Sequence[Sequence[PlannedStage]]]
"""The stages of each arm, once for each replicate of its last one."""


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
        may_be_provisional: Whether declared sizes may stand for data that is not built; if not, stages are about to
            run, and what they would have to compute again is kept in the store.
        arms: Ids of arms, `*` for any letters: only these stand in the plan, and findings of these alone; () takes all.
            Arms are compared before.
        hardware: Counts GPU-hours, and memory as on GPUs.

    Returns:
        The plan.

    Raises:
        RecipeError: What cannot be carried out as written; arms that differ in more than the study says; findings of
            numbers that it will not have.
        DataError: Data that is missing, damaged, or does not fit.
        UsageError: No arm of such an id.
    """
    study = load_study(path)
    chosen = _chosen(study, arms)
    if isinstance(seeds, int):
        seeds = StageSeeds(pretrain=seeds, sft=seeds, rl=seeds)
    counts = seeds or study.recipe.seeds
    planner = Planner(site, run_root, counts, may_be_provisional)
    chains = _all_chains(planner, study.arms)
    first = {arm_id: found[0] for arm_id, found in chains.items()}
    require_answerable(study, first)
    differences = arm_differences(study, first)
    chosen_chains = {arm.id: chains[arm.id] for arm in chosen}
    nodes = _nodes(chosen_chains, hardware)
    by_id = {node.stage_id: node for node in nodes}
    arm_plans = tuple(arm_plan(arm, chains[arm.id], by_id) for arm in chosen)
    evaluations = tuple(evaluation_nodes(study.suites, arm_plans, nodes))
    return StudyPlan(
        name=study.recipe.study,
        path=study.path,
        note=study.recipe.note,
        run_root=planner.place,
        arms=arm_plans,
        stages=nodes,
        evaluations=evaluations,
        varies=study.recipe.varies,
        baseline=study.recipe.baseline if study.recipe.baseline in chosen_chains else None,
        differences=differences,
        findings=tuple(one for one in study.recipe.findings if one.arms <= chosen_chains.keys()),
        findings_left_out=tuple(one.name for one in study.recipe.findings if not one.arms <= chosen_chains.keys()),
        findings_notes=study.recipe.findings_notes,
        main_metrics=_main_metrics(study.recipe.findings),
        totals=study_totals(arm_plans, nodes, evaluations),
        hardware=hardware,
    )


def make_arm_plan(
    path: str | Path,
    *,
    site: str | Path | None = None,
    run_root: Path | None = None,
    overrides: Sequence[str] = (),
    world_size: int | None = None,
    may_be_provisional: bool = True,
) -> StudyPlan:
    """Decides everything about one arm: a study of one arm and one replicate, without evaluations.

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
    chains = planner.chains(arm)
    nodes = _nodes({arm.id: chains}, None)
    arms = (arm_plan(arm, chains, {node.stage_id: node for node in nodes}),)
    return StudyPlan(
        name=arm.id,
        path=str(path),
        note=arm.note,
        run_root=planner.place,
        arms=arms,
        stages=nodes,
        evaluations=(),
        varies=(),
        baseline=None,
        differences=(),
        findings=(),
        totals=study_totals(arms, nodes, ()),
    )


def _main_metrics(findings: Sequence[FindingRecipe]) -> dict[StageKind, str]:
    """Of each kind of stage the metric that most comparisons ask for."""
    asked = {kind: [c.metric for one in findings for c in one.comparisons if c.stage == kind] for kind in STAGE_KINDS}
    return {kind: max(metrics, key=metrics.count) for kind, metrics in asked.items() if metrics}


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


def _nodes(chains: Chains, hardware: Hardware | None) -> tuple[StageNode, ...]:
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
            known = [arm.id for arm in study.arms]
            near = nearest(pattern, known)
            meant = f"did you mean {near}? " if near is not None else ""
            raise UsageError(f"--arms {pattern}: no such arm; {meant}there are: {', '.join(known)}")
    return [arm for arm in study.arms if not patterns or any(fnmatchcase(arm.id, one) for one in patterns)]
