"""A study file with its arms: one checked value that knows where each part was written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import NamedTuple

from data_tools.errors import RecipeError
from data_tools.schema import NAME
from data_tools.strict_yaml import KeyPath, load_yaml, nearest, parse_scalar
from megatron_ext.recipe.checks import checked
from megatron_ext.recipe.compose import PARENT_KEYS, Tree, compose
from megatron_ext.recipe.locate import beside, locate
from megatron_ext.recipe.problems import Origin, Problems, instead_of, origin_of
from megatron_ext.recipe.study_schema import (
    STAGE_KINDS,
    ArmRecipe,
    MatrixRecipe,
    Scalar,
    StageKind,
    StageSettings,
    StudyRecipe,
)

Overrides = dict[StageKind, tuple[str, ...]]
"""`key=value` options by kind of stage."""

_SIGNS = {
    "study": "a study",
    "arm": "an arm",
    "suite": "a suite",
    "stage": "a stage recipe",
    "hybrid_layer_pattern": "a model",
    "prefix": "a source",
    "entries": "a blend",
    "data_root": "a site",
    "run_root": "a site",
}
"""What a file is by a key that only its kind has."""

_REMEDIES = {
    "study": "name a study, a file with study: NAME and its arms",
    "arm": "name an arm, a file with arm: NAME and its stages: [RECIPE, ...]",
    "suite": "name a suite, a file with suite: NAME and its tasks",
}


class Settings(NamedTuple):
    """What is set over recipes.

    Attributes:
        overrides: As `--set` takes it.
        places: Where each override is written.
    """

    overrides: Overrides
    places: dict[str, Origin]


@dataclass(frozen=True)
class LoadedArm:
    """A checked arm.

    Attributes:
        id: Its name.
        recipes: Stage recipes, first to last, as they are reached from the working directory.
        overrides: What is set over them.
        places: Where overrides are written, of those that a file writes.
        note: For readers.
        origin: Where it was written.
    """

    id: str
    recipes: tuple[str, ...]
    overrides: Overrides
    places: Mapping[str, Origin]
    note: str
    origin: Origin


@dataclass(frozen=True)
class LoadedStudy:
    """A checked study.

    Attributes:
        path: Its file, as given.
        recipe: What it asks for.
        arms: Of its files and its matrix, in the order of writing.
        suites: Suite files by kind of stage, as they are reached from the working directory.
        origins: Where each key was written.
    """

    path: str
    recipe: StudyRecipe
    arms: tuple[LoadedArm, ...]
    suites: Mapping[StageKind, tuple[str, ...]]
    origins: Mapping[KeyPath, Origin]

    def origin(self, path: KeyPath) -> Origin:
        """The place of a key, or of the nearest key around it."""
        return origin_of(path, self.origins)


def is_arm_file(path: str | Path) -> bool:
    """Whether a YAML file says that it is an arm."""
    return "arm" in load_yaml(locate(path)).data


def load_arm(path: str | Path, *, above: Settings | None = None) -> LoadedArm:
    """Reads and checks an arm file; its stage recipes must be there, and are not read.

    Args:
        path: The file.
        above: What a study sets over all its arms.

    Raises:
        RecipeError: Everything that is wrong with it, in one message.
    """
    tree, problems = _composed(path, "arm"), Problems()
    arm = checked(ArmRecipe, tree, problems)
    if arm is not None:
        for index, stage in enumerate(arm.stages):
            _require(_path(tree, ("stages", index), stage), ("stages", index), tree, problems)
    problems.raise_recipe_error()
    assert arm is not None, "an arm without problems is valid"
    recipes = tuple(_path(tree, ("stages", index), stage) for index, stage in enumerate(arm.stages))
    settings = _settings(tree, ("set",), arm.settings, above, problems)
    problems.raise_recipe_error()
    return LoadedArm(arm.arm, recipes, *settings, arm.note, tree.origin(("arm",)))


def load_study(path: str | Path) -> LoadedStudy:
    """Reads and checks a study file and its arm files.

    Raises:
        RecipeError: Everything that is wrong, in one message, as `file:line: key: …` lines.
    """
    tree, problems = _composed(path, "study"), Problems()
    study = checked(StudyRecipe, tree, problems)
    if study is None:
        problems.raise_recipe_error()
    assert study is not None, "a study without problems is valid"
    above = _settings(tree, ("set",), study.settings, None, problems)
    arms = [*_arms_of_files(tree, study, above, problems), *_arms_of_matrix(tree, study, above, problems)]
    suites = {kind: tuple(_suites(tree, kind, study, problems)) for kind in STAGE_KINDS}
    if not problems.found and not problems.texts:
        _check_names(tree, study, arms, problems)
    problems.raise_recipe_error()
    return LoadedStudy(str(path), study, tuple(arms), suites, tree.origins)


def _composed(path: str | Path, wanted: str) -> Tree:
    """The tree of a study or an arm.

    Raises:
        RecipeError: The file is of another kind.
    """
    tree = compose(path)
    if message := _of_another_kind(str(path), tree, wanted):
        raise RecipeError(message)
    return tree


def _of_another_kind(path: str, tree: Tree, wanted: str) -> str:
    """What is said of a file that is plainly of another kind than wanted; "" of any other."""
    found = next((kind for key, kind in _SIGNS.items() if key in tree.data), None)
    if wanted in tree.data or found is None:
        return ""
    return f"{path}: this is {found}, and not {_SIGNS[wanted]}; {_REMEDIES[wanted]}"


def _arms_of_files(tree: Tree, study: StudyRecipe, above: Settings, problems: Problems) -> Iterator[LoadedArm]:
    for index, written in enumerate(study.arms):
        key: KeyPath = ("arms", index)
        file = _path(tree, key, written)
        if _require(file, key, tree, problems):
            try:
                yield load_arm(file, above=above)
            except RecipeError as error:
                problems.add_text(str(error))


def _arms_of_matrix(tree: Tree, study: StudyRecipe, above: Settings, problems: Problems) -> Iterator[LoadedArm]:
    """One arm for each combination of values, the last axis fastest."""
    for index, matrix in enumerate(study.matrix):
        at: KeyPath = ("matrix", index)
        axes = [list(_axis(tree, at, axis, matrix, problems)) for axis in matrix.axes]
        settings = _settings(tree, (*at, "set"), matrix.settings, above, problems)
        for values in product(*axes):
            recipes = tuple(recipe for _, stages in values for recipe in stages)
            name = "-".join(name for name, stages in values if stages)
            if recipes:
                yield LoadedArm(name, recipes, *settings, matrix.note, tree.origin((*at, "axes")))


def _axis(
    tree: Tree, at: KeyPath, axis: str, matrix: MatrixRecipe, problems: Problems
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The values of an axis: a name, and the stage recipes that it adds."""
    for name, value in matrix.axes[axis].items():
        key: KeyPath = (*at, "axes", axis, name)
        if not re.fullmatch(NAME, name):
            message = f"{name!r} is not allowed; it becomes a part of arms' ids: letters, digits, '_' and '-'"
            problems.add(tree.origin(key), key, message)
        written = {(*key, place): one for place, one in enumerate(value)} if isinstance(value, tuple) else {key: value}
        files = {where: _path(tree, where, one) for where, one in written.items() if one is not None}
        for where, file in files.items():
            _require(file, where, tree, problems)
        yield name, tuple(files.values())


def _suites(tree: Tree, kind: StageKind, study: StudyRecipe, problems: Problems) -> Iterator[str]:
    for index, written in enumerate(getattr(study.evaluate, kind)):
        key: KeyPath = ("evaluate", kind, index)
        file = _path(tree, key, written)
        if not _require(file, key, tree, problems):
            continue
        if message := _of_another_kind(file, compose(file), "suite"):
            problems.add(tree.origin(key), key, message)
        else:
            yield file


def _path(tree: Tree, key: KeyPath, written: str) -> str:
    """A path as it is reached from the working directory; it is relative to the file that wrote it."""
    return beside(tree.origin(key).file, written)


def _require(file: str, key: KeyPath, tree: Tree, problems: Problems) -> bool:
    if Path(file).is_file():
        return True
    siblings = {found.name for found in Path(file).parent.glob("*.yaml")}
    near = nearest(Path(file).name, siblings)
    meant = f"did you mean {near}? " if near is not None else ""
    message = f"{file}: no such file; {meant}write a path relative to the file it stands in"
    problems.add(tree.origin(key), key, message)
    return False


def _settings(tree: Tree, at: KeyPath, settings: StageSettings, above: Settings | None, problems: Problems) -> Settings:
    """What is set over recipes: the study's first, so that an arm's own stand over them."""
    found: Overrides = {}
    places = dict(above.places) if above is not None else {}
    for kind in STAGE_KINDS:
        own = []
        for name, value in getattr(settings, kind).items():
            key: KeyPath = (*at, kind, name)
            if name in PARENT_KEYS:
                problems.add(tree.origin(key), key, f"{value}: the stage before it in the arm is taken; remove the key")
            is_file = (name == "model" or name.endswith("].source")) and isinstance(value, str)
            own.append(f"{name}={_path(tree, key, value) if is_file else _scalar(value)}")
            places[own[-1]] = replace(tree.origin(key), is_over=True)
        found[kind] = (*(above.overrides[kind] if above is not None else ()), *own)
    return Settings(found, places)


def _scalar(value: Scalar) -> str:
    """A value as `--set` reads it back."""
    if isinstance(value, str):
        is_plain = parse_scalar(value) == value and not value.startswith(("[", "{"))
        return value if is_plain else f'"{value}"'
    return json.dumps(value)


def _check_names(tree: Tree, study: StudyRecipe, arms: list[LoadedArm], problems: Problems) -> None:
    """Refuses arms of one id, and arms that nobody knows."""
    if not arms:
        problems.add(tree.origin(()), (), "no arms; write arms, a matrix, or both")
    known: dict[str, LoadedArm] = {}
    for arm in arms:
        first = known.setdefault(arm.id, arm)
        if first is not arm:
            is_twice = arm.origin == first.origin
            message = (
                "is listed twice; remove one"
                if is_twice
                else f"is the id of the arm of {first.origin} too; name one of them otherwise"
            )
            problems.add(arm.origin, (arm.id,), message)
    named: list[tuple[KeyPath, str]] = [(("baseline",), study.baseline)] if study.baseline is not None else []
    for index, finding in enumerate(study.findings):
        for place, comparison in enumerate(finding.comparisons):
            at: KeyPath = ("findings", index, "comparisons", place)
            named += [((*at, "better"), name) for name in comparison.better]
            named += [((*at, "than"), name) for name in comparison.than]
    for key, name in named:
        if name not in known:
            problems.add(tree.origin(key), key, no_such_arm(name, known))
    for index, confound in enumerate(study.confounds):
        key = ("confounds", index, "arms")
        for pattern in confound.arms:
            if not any(fnmatchcase(arm_id, pattern) for arm_id in known):
                problems.add(tree.origin(key), key, no_such_arm(pattern, known))


def no_such_arm(name: str, known: Iterable[str]) -> str:
    """What is said of an arm that a study does not have."""
    return f"{name}: no such arm; {instead_of(name, known)}"
