"""A recipe file, its sources and its site into one checked value that knows where each part was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import RecipeError
from data_tools.strict_yaml import KeyPath
from megatron_ext.recipe.checks import checked
from megatron_ext.recipe.compose import Tree, compose
from megatron_ext.recipe.problems import Origin, Problems, origin_of
from megatron_ext.recipe.schema import BlendRecipe, ModelRecipe, Recipe, SiteRecipe, SourceRecipe

DEFAULT_SITE = Path("recipes/sites/laptop.yaml")

Single = ModelRecipe | SourceRecipe | BlendRecipe | SiteRecipe
"""What a file holds that is no stage recipe."""

_SIGNS: tuple[tuple[type[Single], str, str], ...] = (
    (ModelRecipe, "hybrid_layer_pattern", "models"),
    (SourceRecipe, "prefix", "sources"),
    (BlendRecipe, "entries", "blends"),
    (SiteRecipe, "data_root", "sites"),
    (SiteRecipe, "run_root", "sites"),
)


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe.

    Attributes:
        path: The recipe file, as given.
        recipe: What it asks for.
        site: Where its data and runs lie.
        sources: One for each entry of the blend, in its order.
        origins: Where each key was written; keys of source i stand below ("sources", i), of the
            site below ("site",). Keys that are not there have their default.
    """

    path: str
    recipe: Recipe
    site: SiteRecipe
    sources: tuple[SourceRecipe, ...]
    origins: Mapping[KeyPath, Origin]

    def origin(self, path: KeyPath) -> Origin:
        """The place of a key, or of the nearest key around it."""
        return origin_of(path, self.origins)


def load_recipe(path: str | Path, *, overrides: Sequence[str] = (), site: str | Path | None = None) -> LoadedRecipe:
    """Reads and checks a stage recipe.

    Args:
        path: A recipe; one that starts with `recipes/` may be one that came with the code.
        overrides: `key=value` options, checked like the file.
        site: A site file; None takes `DEFAULT_SITE`.

    Returns:
        The recipe with its sources and its site.

    Raises:
        RecipeError: Everything that is wrong, in one message, as `file:line: key: …` lines.
    """
    tree = compose(path, overrides=overrides)
    kind = _kind_of(tree)
    if kind is not None and not compose(path).data.keys() & Recipe.model_fields.keys():
        name = kind.__name__.removesuffix("Recipe").lower()
        raise RecipeError(f"{path}: this is a {name} file; name a stage recipe, such as recipes/demo/pretrain.yaml")
    problems = Problems()
    recipe = checked(Recipe, tree, problems)
    origins = dict(tree.origins)
    sources = _load_sources(tree, origins, problems)
    site_recipe = _load_part(SiteRecipe, str(site or DEFAULT_SITE), ("site",), origins, problems)
    problems.raise_recipe_error()
    assert recipe is not None, "a recipe without problems is valid"
    assert site_recipe is not None, "a site without problems is valid"
    return LoadedRecipe(str(path), recipe, site_recipe, tuple(source for source in sources if source), origins)


def load_file(path: str | Path) -> LoadedRecipe | Single:
    """Reads and checks any file of the recipes folder; its kind shows in its keys, else in its folder.

    Raises:
        RecipeError: Everything that is wrong, in one message.
    """
    tree = compose(path)
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


def _load_sources(tree: Tree, origins: dict[KeyPath, Origin], problems: Problems) -> list[SourceRecipe | None]:
    data = tree.data.get("data")
    blend = data.get("blend") if isinstance(data, dict) else None
    sources: list[SourceRecipe | None] = []
    for index, entry in enumerate(blend if isinstance(blend, list) else []):
        file = entry.get("source") if isinstance(entry, dict) else None
        if not isinstance(file, str):
            continue  # the schema has said so
        key: KeyPath = ("data", "blend", index, "source")
        if Path(file).is_file():
            sources.append(_load_part(SourceRecipe, file, ("sources", index), origins, problems))
        else:
            problems.add(tree.origin(key), key, f"{file}: no such file; write a path relative to the file it stands in")
    _refuse_one_name_twice(sources, origins, problems)
    return sources


def _refuse_one_name_twice(
    sources: list[SourceRecipe | None], origins: dict[KeyPath, Origin], problems: Problems
) -> None:
    seen: dict[str, int] = {}
    for index, source in enumerate(sources):
        if source is None:
            continue
        first = seen.setdefault(source.source, index)
        if first != index:
            place = origins["sources", first, "source"]
            message = f"{source.source!r} is the name of {place} too; sources of one blend need different names"
            problems.add(origins["sources", index, "source"], ("source",), message)


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
