"""The stages of arms: each is planned once, on the plan of the stage before it, whichever arms it serves.

A stage recipe of an arm takes up the stage before it in the arm, by the key that it has: `continue`, or `init_from`.
That stage stands in the options of the node by its id, so that a run of the node finds what was planned.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.errors import RecipeError
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.recipe.compose import PARENT_KEYS, compose, is_path
from megatron_ext.recipe.explain import values_of, yaml_scalar
from megatron_ext.recipe.keys import key_name, role_of
from megatron_ext.recipe.load import LoadedRecipe, load_recipe
from megatron_ext.recipe.locate import shown
from megatron_ext.recipe.problems import Origin
from megatron_ext.recipe.schema import UNRESOLVED
from megatron_ext.recipe.study_load import LoadedArm
from megatron_ext.recipe.study_schema import STAGE_KINDS, StageKind, StageSeeds
from megatron_ext.study.nodes import PlannedStage
from megatron_ext.study.study_plan import Takes

_FIELDS = {"continue": "parent", "init_from": "init_from"}
"""Fields of a recipe by the keys of its parent."""


@dataclass(frozen=True)
class _Asked:
    """A stage recipe, read before its parent is known."""

    path: str
    stage: StageKind
    key: str  # of the parent: continue, init_from
    names: str | None  # what stands there


@dataclass
class Planner:
    """Plans each stage once, whichever arms it serves."""

    site: str | Path | None
    run_root: Path | None
    counts: StageSeeds
    may_be_provisional: bool
    world_size: int | None = None
    _by_question: dict[tuple[str, tuple[str, ...], str | None, int], PlannedStage] = field(default_factory=dict)
    _by_id: dict[str, PlannedStage] = field(default_factory=dict)
    _first_arm: dict[str, str] = field(default_factory=dict)  # by stage id: the arm that came to it first
    _first_parent: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)  # by recipe and its options
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _loaded: dict[tuple[str, tuple[str, ...]], LoadedRecipe] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The run root."""
        return str(self.run_root or next(iter(self._by_id.values())).loaded.site.run_root)

    def chains(self, arm: LoadedArm) -> list[list[PlannedStage]]:
        """The stages of an arm, once for each replicate of its last stage."""
        asked = self._in_order(arm)
        return [self._chain(arm, asked, replicate) for replicate in range(self._count(asked[-1].stage))]

    def recipes(self, arm: LoadedArm) -> list[LoadedRecipe]:
        """The recipes of an arm with what is set over them, as they are before their parents are known."""
        return [self._load(arm, one.path, arm.overrides[one.stage]) for one in self._in_order(arm)]

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
            self._by_question[question] = self._plan(arm, asked, before, replicate)
        return self._by_question[question]

    def _plan(self, arm: LoadedArm, asked: _Asked, before: PlannedStage | None, replicate: int) -> PlannedStage:
        loaded, overrides = self._with_parent(arm, asked, before)
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
        if plan.stage_id in self._by_id:
            self._check_place(arm, loaded, self._by_id[plan.stage_id])
            return self._by_id[plan.stage_id]
        takes: Takes | None = None
        if before is not None:
            takes = "everything" if asked.key == "continue" else "weights"
        parent = before.plan.stage_id if before is not None else None
        stage = PlannedStage(loaded, plan, overrides, parent, takes, replicate)
        self._by_id[plan.stage_id], self._first_arm[plan.stage_id] = stage, arm.id
        return stage

    def _with_parent(
        self, arm: LoadedArm, asked: _Asked, before: PlannedStage | None
    ) -> tuple[LoadedRecipe, tuple[str, ...]]:
        """A stage's recipe with its parent's id, and the options that give it; it is checked with its first parent."""
        overrides = arm.overrides[asked.stage]
        if before is None:
            return self._load(arm, asked.path, overrides), overrides
        option = f"{asked.key}={before.plan.stage_id}"
        first = self._first_parent.setdefault((asked.path, overrides), option)
        loaded = self._load(arm, asked.path, (*overrides, first))
        if option != first:
            recipe = loaded.recipe.model_copy(update={_FIELDS[asked.key]: before.plan.stage_id})
            origins = {**loaded.origins, (asked.key,): Origin(f"--set {option}", is_over=True)}
            loaded = replace(loaded, recipe=recipe, origins=origins)
        return loaded, (*overrides, option)

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

    def _load(self, arm: LoadedArm, path: str, overrides: tuple[str, ...]) -> LoadedRecipe:
        if (path, overrides) not in self._loaded:
            self._loaded[path, overrides] = load_recipe(path, overrides=overrides, places=arm.places, site=self.site)
        return self._loaded[path, overrides]

    def _count(self, stage: StageKind) -> int:
        return int(getattr(self.counts, stage))

    def _in_order(self, arm: LoadedArm) -> list[_Asked]:
        """The stages of an arm, read and not planned.

        Raises:
            RecipeError: A recipe names another parent than the arm does.
        """
        asked = [self._read(recipe) for recipe in arm.recipes]
        for before, one in zip([None, *asked], asked, strict=False):
            if one.names in (None, UNRESOLVED) or (before is None and not is_path(str(one.names))):
                continue
            if before is None or not is_path(str(one.names)) or shown(str(one.names)) != shown(before.path):
                place = before.path if before is not None else "nothing"
                raise RecipeError(
                    f"{arm.origin}: arm {arm.id}: {one.path}: {one.key}: {one.names}, and in this arm {place} stands "
                    f"before it; write {one.names} before it, or {UNRESOLVED} in the recipe"
                )
        return asked

    def _check_place(self, arm: LoadedArm, loaded: LoadedRecipe, first: PlannedStage) -> None:
        """Refuses a stage that two arms share and want to run in two ways: it runs once."""
        here, there = _placement(loaded), _placement(first.loaded)
        differing = [
            f"{key} {yaml_scalar(here[key])} here, {yaml_scalar(there[key])} there"
            for key in here
            if key in there and here[key] != there[key]
        ]
        if differing:
            other = self._first_arm[first.plan.stage_id]
            raise RecipeError(
                f"{arm.origin}: arm {arm.id}: {loaded.path}: is {first.plan.stage_id}, which arm {other} has too, and "
                f"which runs once: {'; '.join(differing)}; write the same, such as in `set` of the study"
            )


def _placement(loaded: LoadedRecipe) -> dict[str, Any]:
    """What a recipe says of where and how its stage runs."""
    return {key_name(path): value for path, value in values_of(loaded.recipe) if role_of(path) == "placement"}
