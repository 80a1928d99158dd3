"""A recipe file with its sources, its parent and its site: one checked value that knows where each part was written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_tools.blend_files import BlendFile, SourceFile, read_file
from data_tools.errors import RecipeError
from data_tools.strict_yaml import KeyPath
from megatron_ext.recipe.checks import checked
from megatron_ext.recipe.compose import PARENT_KEYS, Tree, blends_of, compose, is_path
from megatron_ext.recipe.locate import shown
from megatron_ext.recipe.problems import Origin, Problems, origin_of
from megatron_ext.recipe.schema import BlendEntry, BlendRecipe, ModelRecipe, Recipe, SiteRecipe, SourceRecipe
from megatron_ext.recipe.study_load import LoadedArm, LoadedStudy, load_arm, load_study

DEFAULT_SITE = Path("recipes/sites/laptop.yaml")

Single = ModelRecipe | SourceRecipe | BlendRecipe | SiteRecipe
"""What a file holds that is no stage recipe."""

_SIGNS: tuple[tuple[type[Single], str, str], ...] = (
    (ModelRecipe, "hybrid_layer_pattern", "models"),
    (SourceRecipe, "prefix", "sources"),
    (BlendRecipe, "entries", "blends"),
    (SiteRecipe, "data_root", "sites"),
    (SiteRecipe, "run_root", "sites"),
    (SiteRecipe, "timeouts", "sites"),
    (SiteRecipe, "slurm", "sites"),
)


_WITH_ARTICLE = {"study": "a study", "arm": "an arm"}


@dataclass(frozen=True)
class LoadedBlend:
    """The blend of a stage or of one of its phases.

    Attributes:
        key: Where its entries stand.
        tokens: Processed tokens that are read of it, as asked.
        entries: What it takes.
        parts: The source or blend that each entry names.
    """

    key: KeyPath
    tokens: int
    entries: tuple[BlendEntry, ...]
    parts: tuple[SourceFile | BlendFile, ...]


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe.

    Attributes:
        path: The recipe file, as given.
        recipe: What it asks for.
        site: Where its data and runs lie.
        sources: Every source that its blends lead to, once each, in the order of naming.
        blends: One for each phase; one in all where `data.blend` is written.
        parent: The stage that it continues, where that is named by its recipe.
        weights_of: The stage whose weights it begins with, where that is named by its recipe.
        origins: Where each key was written; keys of source i stand below ("sources", i), of the
            site below ("site",). Keys that are not there have their default.
    """

    path: str
    recipe: Recipe
    site: SiteRecipe
    sources: tuple[SourceRecipe, ...]
    blends: tuple[LoadedBlend, ...]
    parent: LoadedRecipe | None
    weights_of: LoadedRecipe | None
    origins: Mapping[KeyPath, Origin]

    def origin(self, path: KeyPath) -> Origin:
        """The place of a key, or of the nearest key around it."""
        return origin_of(path, self.origins)


def load_recipe(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    places: Mapping[str, Origin] = MappingProxyType({}),
    site: str | Path | None = None,
    children: tuple[str, ...] = (),
) -> LoadedRecipe:
    """Reads and checks a stage recipe, and the recipes of the stages that it begins from.

    Args:
        path: A recipe; one that starts with `recipes/` may be one that came with the code.
        overrides: `key=value` options, checked like the file; parents are read as they stand.
        places: Where overrides stand that a file writes.
        site: A site file; None takes `DEFAULT_SITE`.
        children: Recipes that begin from this one, for circles.

    Returns:
        The recipe with its sources and its site.

    Raises:
        RecipeError: Everything that is wrong, in one message, as `file:line: key: …` lines.
    """
    tree = compose(path, overrides=overrides, places=places)
    if chain_file := next((key for key in ("study", "arm") if key in tree.data), None):
        name = _WITH_ARTICLE[chain_file]
        raise RecipeError(f"{path}: this is {name} file; name a stage recipe, such as recipes/demo/pretrain.yaml")
    kind = _kind_of(tree)
    if kind is not None and not compose(path).data.keys() & Recipe.model_fields.keys():
        name = kind.__name__.removesuffix("Recipe").lower()
        raise RecipeError(f"{path}: this is a {name} file; name a stage recipe, such as recipes/demo/pretrain.yaml")
    problems = Problems()
    recipe = checked(Recipe, tree, problems)
    origins = dict(tree.origins)
    sources = _Sources(origins, problems)
    parts = {key: _load_parts(tree, key, entries, sources, problems) for key, entries in blends_of(tree).items()}
    sources.refuse_one_name_twice()
    chain = (*children, shown(path))
    parent, weights_of = (_load_parent(tree, key, problems, site=site, chain=chain) for key in PARENT_KEYS)
    site_recipe = _load_part(SiteRecipe, str(site or DEFAULT_SITE), ("site",), origins, problems)
    problems.raise_recipe_error()
    assert recipe is not None, "a recipe without problems is valid"
    assert site_recipe is not None, "a site without problems is valid"
    blends = tuple(_loaded_blends(recipe, parts))
    return LoadedRecipe(str(path), recipe, site_recipe, sources.all, blends, parent, weights_of, origins)


def load_file(path: str | Path) -> LoadedRecipe | Single | LoadedArm | LoadedStudy:
    """Reads and checks any file of the recipes folder; its kind shows in its keys, else in its folder.

    Raises:
        RecipeError: Everything that is wrong, in one message.
    """
    tree = compose(path)
    if "study" in tree.data:
        return load_study(path)
    if "arm" in tree.data:
        return load_arm(path)
    folder = Path(path).absolute().parent.name
    kind = _kind_of(tree)
    if kind is None and not tree.data.keys() & Recipe.model_fields.keys():
        kind = next((kind for kind, _, name in _SIGNS if name == folder), None)
    if kind is None:
        return load_recipe(path)
    problems = Problems()
    single = checked(kind, tree, problems)
    problems.raise_recipe_error()
    assert single is not None, "a file without problems is valid"
    return single


def _kind_of(tree: Tree) -> type[Single] | None:
    """What a file is by the keys that only its kind has; None for a stage recipe, and where none of them is there."""
    return next((kind for kind, key, _ in _SIGNS if key in tree.data), None)


class _Sources:
    """The sources of a recipe, each read once."""

    def __init__(self, origins: dict[KeyPath, Origin], problems: Problems) -> None:
        self._origins, self._problems = origins, problems
        self._found: dict[str, SourceRecipe | None] = {}  # by real path

    @property
    def all(self) -> tuple[SourceRecipe, ...]:
        return tuple(source for source in self._found.values() if source)

    def load(self, file: str) -> SourceFile | None:
        """A source file; None when something is wrong with it, which is noted once."""
        place = os.path.realpath(file)
        if place not in self._found:
            key: KeyPath = ("sources", len(self._found))
            self._found[place] = None  # takes the index, sound or not
            self._found[place] = _load_part(SourceRecipe, file, key, self._origins, self._problems)
        source = self._found[place]
        return SourceFile(file, source) if source is not None else None

    def refuse_one_name_twice(self) -> None:
        seen: dict[str, int] = {}
        for index, source in enumerate(self._found.values()):
            if source is None:
                continue
            first = seen.setdefault(source.source, index)
            if first != index:
                place = self._origins["sources", first, "source"]
                message = f"{source.source!r} is the name of {place} too; sources of one recipe need different names"
                self._problems.add(self._origins["sources", index, "source"], ("source",), message)


def _load_parts(
    tree: Tree, key: KeyPath, entries: list[Any], sources: _Sources, problems: Problems
) -> list[SourceFile | BlendFile | None]:
    """What the entries of one blend name; None where that is wrong, which is noted."""
    parts: list[SourceFile | BlendFile | None] = []
    for index, entry in enumerate(entries):
        file = entry.get("source") if isinstance(entry, dict) else None
        if not isinstance(file, str):
            continue  # the schema has said so
        if Path(file).is_file():
            parts.append(_load_source_or_blend(file, sources, problems))
        else:
            here: KeyPath = (*key, index, "source")
            origin = tree.origin(here)
            problems.add(origin, here, f"{file}: no such file; write a path relative to {_base(origin)}")
    return parts


def _base(origin: Origin) -> str:
    """What a path that is written there is relative to; an option has no line."""
    return "the file it stands in" if origin.line else "the working directory"


def _load_source_or_blend(file: str, sources: _Sources, problems: Problems) -> SourceFile | BlendFile | None:
    try:
        if _kind_of(compose(file)) is not BlendRecipe:
            return sources.load(file)
        blend = read_file(file)
    except RecipeError as error:
        problems.add_text(str(error))
        return None
    assert isinstance(blend, BlendFile), "a file with entries is a blend file"
    for source in blend.sources():
        sources.load(shown(source.path))
    return blend


def _loaded_blends(
    recipe: Recipe, parts: Mapping[KeyPath, Sequence[SourceFile | BlendFile | None]]
) -> Iterator[LoadedBlend]:
    phases = recipe.data.phases or ()
    written: dict[KeyPath, tuple[int, tuple[BlendEntry, ...]]] = {
        ("data", "phases", index, "blend"): (phase.tokens, phase.blend) for index, phase in enumerate(phases)
    }
    if recipe.data.blend is not None:
        written = {("data", "blend"): (recipe.budget.tokens, recipe.data.blend)}
    for key, (tokens, entries) in written.items():
        yield LoadedBlend(key, tokens, entries, tuple(part for part in parts[key] if part))


def _load_parent(
    tree: Tree, name: str, problems: Problems, *, site: str | Path | None, chain: tuple[str, ...]
) -> LoadedRecipe | None:
    """The recipe that `continue:` or `init_from:` names, if it names one."""
    key: KeyPath = (name,)
    file = tree.data.get(name)
    if not isinstance(file, str) or not is_path(file):
        return None
    if file in chain:
        message = f"a circle: {' -> '.join([*chain, file])}; the first stage of a chain has no {name}"
        problems.add(tree.origin(key), key, message)
    elif not Path(file).is_file():
        base = _base(tree.origin(key))
        message = f"{file}: no such file; write the path of a stage recipe relative to {base}"
        problems.add(tree.origin(key), key, message)
    else:
        try:
            return load_recipe(file, site=site, children=chain)
        except RecipeError as error:
            problems.add_text(str(error))
    return None


def _load_part[Kind: (SourceRecipe, SiteRecipe)](
    kind: type[Kind], file: str, prefix: KeyPath, origins: dict[KeyPath, Origin], problems: Problems
) -> Kind | None:
    """A file that a recipe names; its problems join those of the recipe."""
    try:
        tree = compose(file)
    except RecipeError as error:
        problems.add_text(str(error))
        return None
    origins.update({prefix + path: origin for path, origin in tree.origins.items()})
    return checked(kind, tree, problems)
