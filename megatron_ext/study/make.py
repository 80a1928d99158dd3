"""A study file into its plan: every stage is planned once, on the plan of the stage before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from data_tools.errors import RecipeError, UsageError
from data_tools.strict_yaml import nearest
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.recipe.compose import PARENT_KEYS, compose, is_path
from megatron_ext.recipe.load import LoadedRecipe, load_recipe
from megatron_ext.recipe.locate import shown
from megatron_ext.recipe.schema import UNRESOLVED
from megatron_ext.recipe.study_load import LoadedArm, LoadedStudy, load_arm, load_study
from megatron_ext.recipe.study_schema import STAGE_KINDS, StageKind, StageSeeds
from megatron_ext.study.condition import arm_differences
from megatron_ext.study.nodes import PlannedStage, evaluation_nodes, stage_node, study_totals
from megatron_ext.study.study_plan import ArmPlan, StageNode, StudyPlan, Takes


@dataclass(frozen=True)
class Hardware:
    """What GPU-hours are counted for.

    Attributes:
        gpu: A key of `cost.PEAK_TFLOPS`, or a peak in TFLOP/s.
        mfu: Model FLOPs utilisation, in (0, 1].
    """

    gpu: str
    mfu: float


def make_study_plan(
    path: str | Path,
    *,
    site: str | Path | None = None,
    run_root: Path | None = None,
    seeds: int | None = None,
    may_be_provisional: bool = True,
    arms: Sequence[str] = (),
    hardware: Hardware | None = None,
) -> StudyPlan:
    """Decides everything about a study.

    Args:
        path: A study file.
        site: A site file; None takes the default.
        run_root: Folder that holds `stages/`; None takes the site's.
        seeds: Replicates of every stage; None takes the study's.
        may_be_provisional: Whether declared sizes may stand for data that is not built; if not, stages are about to
            run, and what they would have to compute again is kept in the store.
        arms: Ids of arms, `*` for any letters: only these stand in the plan; () takes all. Arms are compared before.
        hardware: Counts GPU-hours, and memory as on GPUs.

    Returns:
        The plan.

    Raises:
        RecipeError: What cannot be carried out as written, arms that differ in more than the study says included.
        DataError: Data that is missing, damaged, or does not fit.
        UsageError: No arm of such an id.
    """
    study = load_study(path)
    chosen = _chosen(study, arms)
    counts = StageSeeds(pretrain=seeds, sft=seeds, rl=seeds) if seeds is not None else study.recipe.seeds
    planner = _Planner(site, run_root, counts, may_be_provisional)
    chains = {arm.id: planner.chains(arm) for arm in study.arms}
    differences = arm_differences(study, {arm_id: found[0] for arm_id, found in chains.items()})
    arm_plans = tuple(_arm_plan(arm, chains[arm.id]) for arm in chosen)
    nodes = _nodes(planner, arm_plans, hardware)
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
        baseline=study.recipe.baseline,
        differences=differences,
        findings=study.recipe.findings,
        totals=study_totals(arm_plans, nodes, evaluations),
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
    planner = _Planner(site, run_root, StageSeeds(), may_be_provisional, world_size)
    arms = (_arm_plan(arm, planner.chains(arm)),)
    nodes = _nodes(planner, arms, None)
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


def _arm_plan(arm: LoadedArm, chains: Sequence[Sequence[PlannedStage]]) -> ArmPlan:
    ids = tuple(tuple(stage.plan.stage_id for stage in chain) for chain in chains)
    return ArmPlan(id=arm.id, chains=ids, recipes=arm.recipes, note=arm.note)


def _nodes(planner: _Planner, arms: Sequence[ArmPlan], hardware: Hardware | None) -> tuple[StageNode, ...]:
    """The stages that some arms need, each with these arms."""
    serving: dict[str, list[str]] = {}
    for arm in arms:
        for stage_id in dict.fromkeys(stage_id for chain in arm.chains for stage_id in chain):
            serving.setdefault(stage_id, []).append(arm.id)
    return tuple(
        stage_node(stage, arms=tuple(serving[stage.plan.stage_id]), hardware=hardware)
        for stage in planner.stages
        if stage.plan.stage_id in serving
    )


def _chosen(study: LoadedStudy, patterns: Sequence[str]) -> list[LoadedArm]:
    for pattern in patterns:
        if not any(fnmatchcase(arm.id, pattern) for arm in study.arms):
            known = [arm.id for arm in study.arms]
            near = nearest(pattern, known)
            meant = f"did you mean {near}? " if near is not None else ""
            raise UsageError(f"--arms {pattern}: no such arm; {meant}there are: {', '.join(known)}")
    return [arm for arm in study.arms if not patterns or any(fnmatchcase(arm.id, one) for one in patterns)]


@dataclass(frozen=True)
class _Asked:
    """A stage recipe, read before its parent is known."""

    path: str
    stage: StageKind
    key: str  # of the parent: continue, init_from
    names: str | None  # what stands there


@dataclass
class _Planner:
    """Plans each stage once, whichever arms it serves."""

    site: str | Path | None
    run_root: Path | None
    counts: StageSeeds
    may_be_provisional: bool
    world_size: int | None = None
    stages: list[PlannedStage] = field(default_factory=list)  # parents first
    _by_question: dict[tuple[str, tuple[str, ...], str | None, int], PlannedStage] = field(default_factory=dict)
    _by_id: dict[str, PlannedStage] = field(default_factory=dict)
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _loaded: dict[tuple[str, tuple[str, ...]], LoadedRecipe] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The run root."""
        return str(self.run_root or self.stages[0].loaded.site.run_root)

    def chains(self, arm: LoadedArm) -> list[list[PlannedStage]]:
        """The stages of an arm, once for each replicate of its last stage."""
        asked = [self._read(recipe) for recipe in arm.recipes]
        self._check_order(arm, asked)
        return [self._chain(arm, asked, replicate) for replicate in range(self._count(asked[-1].stage))]

    def _chain(self, arm: LoadedArm, asked: list[_Asked], replicate: int) -> list[PlannedStage]:
        """The stages behind one replicate of the last stage, and itself."""
        *earlier, last = asked
        before: list[PlannedStage] = []
        if earlier:
            before = self._chain(arm, earlier, replicate % self._count(earlier[-1].stage))
        return [*before, self._stage(arm, last, before[-1] if before else None, replicate)]

    def _stage(self, arm: LoadedArm, asked: _Asked, before: PlannedStage | None, replicate: int) -> PlannedStage:
        overrides = arm.overrides[asked.stage]
        parent = before.plan.stage_id if before is not None else None
        question = (asked.path, overrides, parent, replicate)
        if question not in self._by_question:
            self._by_question[question] = self._plan(asked, overrides, before, replicate)
        return self._by_question[question]

    def _plan(
        self, asked: _Asked, overrides: tuple[str, ...], before: PlannedStage | None, replicate: int
    ) -> PlannedStage:
        if before is not None:
            overrides = (*overrides, f"{asked.key}={before.plan.stage_id}")
        loaded = self._load(asked.path, overrides)
        if replicate:
            seed = loaded.recipe.seed + replicate
            overrides = (*overrides, f"seed={seed}")
            loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"seed": seed}))
        plan = make_stage_plan(
            loaded,
            world_size=self.world_size,
            may_be_provisional=self.may_be_provisional,
            run_root=self.run_root,
            before=before.plan if before is not None else None,
        )
        if plan.stage_id not in self._by_id:
            takes: Takes | None = None
            if before is not None:
                takes = "everything" if asked.key == "continue" else "weights"
            parent = before.plan.stage_id if before is not None else None
            self._by_id[plan.stage_id] = PlannedStage(loaded, plan, overrides, parent, takes, replicate)
            self.stages.append(self._by_id[plan.stage_id])
        return self._by_id[plan.stage_id]

    def _read(self, path: str) -> _Asked:
        """What a stage recipe says of its kind and its parent.

        Raises:
            RecipeError: It is none.
        """
        if path not in self._asked:
            data = compose(path).data
            if data.get("stage") not in STAGE_KINDS:
                load_recipe(path, site=self.site)  # says what is wrong with it
                raise AssertionError(f"{path} is a recipe of no kind")
            key = next((key for key in PARENT_KEYS if data.get(key) is not None), "init_from")
            self._asked[path] = _Asked(path, data["stage"], key, data.get(key))
        return self._asked[path]

    def _load(self, path: str, overrides: tuple[str, ...]) -> LoadedRecipe:
        if (path, overrides) not in self._loaded:
            self._loaded[path, overrides] = load_recipe(path, overrides=overrides, site=self.site)
        return self._loaded[path, overrides]

    def _count(self, stage: StageKind) -> int:
        return int(getattr(self.counts, stage))

    def _check_order(self, arm: LoadedArm, asked: list[_Asked]) -> None:
        """Refuses a stage whose recipe names another parent than the arm does."""
        for before, one in zip([None, *asked], asked, strict=False):
            if one.names in (None, UNRESOLVED) or (before is None and not is_path(str(one.names))):
                continue
            if before is None or not is_path(str(one.names)) or shown(str(one.names)) != shown(before.path):
                place = before.path if before is not None else "nothing"
                raise RecipeError(
                    f"{arm.origin}: arm {arm.id}: {one.path}: {one.key}: {one.names}, and in this arm {place} stands "
                    f"before it; write {one.names} before it, or {UNRESOLVED} in the recipe"
                )
