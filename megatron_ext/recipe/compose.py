"""Several YAML files and `--set` options into one tree that knows where each value was written.

Order: the `extends` chain from its top down to the file itself, then the overrides one by one.
Maps merge, lists and values replace. `model:` may be the path of a model file, which replaces the
model that came from above; a mapping merges over it. Paths are relative to the file that wrote
them (of an override: to the working directory) and leave here relative to the working directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_tools.errors import RecipeError
from data_tools.strict_yaml import KeyPath, load_yaml, parse_scalar, parse_yaml
from megatron_ext.recipe.keys import key_name, parse_key
from megatron_ext.recipe.locate import beside, locate, shown
from megatron_ext.recipe.problems import Origin, origin_of

MAX_LEVELS_ABOVE = 2
"""Files above a recipe; a longer chain hides from its reader what a value is."""

PARENT_KEYS = ("continue", "init_from")
"""Keys that name another stage, by its recipe or by its id."""

_MODEL: KeyPath = ("model",)


@dataclass
class Tree:
    """Plain values and the place of each.

    Attributes:
        data: Nested dict, list, str, int, float, bool, None.
        origins: Place of each key and list element; of `()` the place of the whole.
        replacing: Paths whose mapping replaces the one from above instead of merging with it.
    """

    data: dict[str, Any]
    origins: dict[KeyPath, Origin]
    replacing: set[KeyPath] = field(default_factory=set)

    def origin(self, path: KeyPath) -> Origin:
        """The place of a key, or of the nearest key around it."""
        return origin_of(path, self.origins)


def compose(
    path: str | Path, *, overrides: Sequence[str] = (), places: Mapping[str, Origin] = MappingProxyType({})
) -> Tree:
    """Reads a file, the files it extends and its model file, and applies overrides.

    Args:
        path: A YAML file.
        overrides: `key=value` options, such as `optimizer.lr=1e-3`.
        places: Where overrides stand that a file writes; others are options of the command line.

    Returns:
        What was asked, not yet checked against the schema.

    Raises:
        RecipeError: A file that is missing or no YAML, a bad `extends` chain, or an override that
            names no place.
    """
    files = _chain(path)
    tree = files[0]
    for child in files[1:]:
        tree = _merged(tree, child)
    for override in overrides:
        _apply(tree, override, places.get(override) or Origin(f"--set {override}", is_over=True))
    return tree


def _chain(path: str | Path) -> list[Tree]:
    """The files from the top of the `extends` chain down to `path`."""
    trees: list[Tree] = []
    seen: list[str] = []
    file = shown(locate(path))
    while True:
        seen.append(file)
        tree = _read(file)
        trees.insert(0, tree)
        if "extends" not in tree.data:
            return trees
        parent, origin = tree.data.pop("extends"), tree.origins.pop(("extends",))
        if not isinstance(parent, str):
            raise RecipeError(f"{origin}: extends: {parent!r} is no path; write one YAML file, relative to this one")
        file = beside(file, parent)
        chain = " -> ".join([*seen, file])
        if file in seen:
            raise RecipeError(f"{origin}: extends: a circle: {chain}; remove one extends")
        if len(seen) > MAX_LEVELS_ABOVE:
            raise RecipeError(
                f"{origin}: extends: {len(seen)} levels above {seen[0]}, at most {MAX_LEVELS_ABOVE} are allowed: "
                f"{chain}; write the values of one level into another, or those of an arm's stage into its set:"
            )
        _require_file(file, origin, key="extends")


def _read(file: str) -> Tree:
    document = load_yaml(file)
    tree = Tree(document.data, {path: Origin(file, line) for path, line in document.marks.items()})
    if not _is_model(tree):
        _resolve_paths(tree, written_in=file)
    return tree


def _is_model(tree: Tree) -> bool:
    """Whether a file describes a model itself: a `model:` inside it is an unknown key, not one more file."""
    return "hybrid_layer_pattern" in tree.data


def _resolve_paths(tree: Tree, *, written_in: str) -> None:
    """Replaces a model's path by the model, and makes the paths of sources readable from here.

    Values of a wrong kind are left to the schema.
    """
    for blend in blends_of(tree).values():
        for entry in blend:
            if isinstance(entry, dict) and isinstance(entry.get("source"), str):
                entry["source"] = beside(written_in, entry["source"])
    for key in PARENT_KEYS:
        parent = tree.data.get(key)
        if isinstance(parent, str) and is_path(parent):
            tree.data[key] = beside(written_in, parent)
    if isinstance(tree.data.get("model"), str):
        origin = tree.origins[_MODEL]
        file = beside(written_in, tree.data["model"])
        _require_file(file, origin, key="model")
        model = compose(file)
        _put(tree, _MODEL, model.data, {_MODEL + path: place for path, place in model.origins.items()})
        tree.origins[_MODEL] = origin
        tree.replacing.add(_MODEL)


def blends_of(tree: Tree) -> dict[KeyPath, list[Any]]:
    """The list of entries of each blend that a stage recipe writes, by its key; not yet checked."""
    data = tree.data.get("data")
    if not isinstance(data, dict):
        return {}
    found: dict[KeyPath, Any] = {("data", "blend"): data.get("blend")}
    phases = data.get("phases")
    for index, phase in enumerate(phases if isinstance(phases, list) else []):
        found["data", "phases", index, "blend"] = phase.get("blend") if isinstance(phase, dict) else None
    return {key: blend for key, blend in found.items() if isinstance(blend, list)}


def is_path(parent: str) -> bool:
    """Whether `continue:` or `init_from:` names a recipe; else it names a stage by its id."""
    return parent.endswith((".yaml", ".yml"))


def _require_file(file: str, origin: Origin, *, key: str) -> None:
    if not Path(file).is_file():
        siblings = sorted(shown(path) for path in Path(file).parent.glob("*.yaml"))
        there = f"there are: {', '.join(siblings)}" if siblings else f"{Path(file).parent} holds no YAML file"
        raise RecipeError(f"{origin}: {key}: {file}: no such file; {there}")


def _merged(parent: Tree, child: Tree) -> Tree:
    """The child over its parent."""
    tree = Tree(dict(parent.data), dict(parent.origins), set(parent.replacing))
    _merge_into(tree, child, ())
    tree.origins[()] = child.origins[()]
    return tree


def _merge_into(tree: Tree, child: Tree, path: KeyPath) -> None:
    for key, value in _value_at(child.data, path).items():
        below = (*path, key)
        merges = isinstance(value, dict) and isinstance(_value_at(tree.data, below), dict)
        if merges and below not in child.replacing:
            tree.origins[below] = child.origins[below]
            _merge_into(tree, child, below)
        else:
            _put(tree, below, value, child.origins)


def _put(tree: Tree, path: KeyPath, value: Any, origins: Mapping[KeyPath, Origin]) -> None:
    """Sets one place of a tree and takes the origins of everything below it."""
    holder = _value_at(tree.data, path[:-1])
    holder[path[-1]] = value
    for old in [known for known in tree.origins if known[: len(path)] == path]:
        del tree.origins[old]
    tree.origins.update({known: origin for known, origin in origins.items() if known[: len(path)] == path})


def _value_at(data: Any, path: KeyPath) -> Any:
    """The value at a path; None where there is none."""
    for step in path:
        if isinstance(data, dict):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None
    return data


def _apply(tree: Tree, override: str, origin: Origin) -> None:
    """Applies one `key=value` as if it were one more file: a mapping merges, anything else replaces."""
    path, value = _parsed(override, origin)
    origins = dict.fromkeys((path[:length] for length in range(len(path))), origin)
    origins |= dict.fromkeys(_paths(value, path), origin)
    if any(isinstance(step, int) for step in path):
        _require_element(tree, path, origin)
        _put(tree, path, value, origins)
        _resolve_paths(tree, written_in="")
        return
    layer = Tree({}, origins)
    _set(layer.data, path, value)
    _resolve_paths(layer, written_in="")
    _merge_into(tree, layer, ())


def _parsed(override: str, origin: Origin) -> tuple[KeyPath, Any]:
    key, separator, text = override.partition("=")
    if not separator:
        raise RecipeError(f"{origin}: write --set key=value, such as --set optimizer.lr=1e-3")
    try:
        path = parse_key(key.strip())
    except ValueError as error:
        raise RecipeError(f"{origin}: {error}") from None
    if text.strip().startswith(("[", "{")):
        return path, parse_yaml(f"value: {text}", path=str(origin)).data["value"]
    return path, parse_scalar(text)


def _require_element(tree: Tree, path: KeyPath, origin: Origin) -> None:
    """Refuses a path whose first list has no such element, or whose last key has nothing to stand in."""
    at, index = next((place, step) for place, step in enumerate(path) if isinstance(step, int))
    elements = _value_at(tree.data, path[:at])
    if not isinstance(elements, list) or index >= len(elements):
        has = f"has elements 0 to {len(elements) - 1}" if isinstance(elements, list) else "is no list"
        raise RecipeError(f"{origin}: {key_name(path[:at])} {has}")
    if len(path) > at + 1 and not isinstance(_value_at(tree.data, path[:-1]), dict):
        raise RecipeError(f"{origin}: no key stands there; replace {key_name(path[: at + 1])} as a whole")


def _set(data: dict[Any, Any], path: KeyPath, value: Any) -> None:
    for step in path[:-1]:
        data = data.setdefault(step, {})
    data[path[-1]] = value


def _paths(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The path of a value and of everything inside it."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in items:
        yield from _paths(inner, (*path, step))
