"""A resolved recipe for people: every value with its origin, one key in words, two recipes compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_tools.errors import RecipeError
from data_tools.strict_yaml import KeyPath, nearest, parse_yaml
from megatron_ext.recipe.keys import field_at, fields_of, key_name, leaf_keys, parse_key, role_of, section_at, type_name
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Origin
from megatron_ext.recipe.schema import Recipe, Section

DEFAULT = "default"

Origins = Mapping[KeyPath, Origin]


@dataclass(frozen=True)
class Difference:
    """A key that two recipes set differently; a value is None where the key is not there."""

    key: str
    role: str  # see keys.role_of
    values: tuple[str, ...]  # the first recipe's, the second's
    origins: tuple[str, ...]


def resolved_yaml(loaded: LoadedRecipe) -> str:
    """The complete recipe as YAML that loads to the same recipe, with the origin of each line as a comment."""
    lines = list(_yaml_lines(loaded.recipe.model_dump(by_alias=True), (), loaded.origins))
    width = max(len(text) for text, _ in lines)
    return "".join(f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines)


def explain(loaded: LoadedRecipe, key: str) -> str:
    """One key in words: what it means, its value, where that comes from, what it may be.

    Args:
        loaded: A checked recipe.
        key: For example `optimizer.lr`, or a section.

    Raises:
        RecipeError: The schema has no such key.
    """
    path = _known_path(key)
    section = section_at(Recipe, path)
    if section is not None:
        return _section_text(section, path)
    values = dict(values_of(loaded.recipe))
    inside = [known for known in values if known[: len(path)] == path]
    unset = next((path[:depth] for depth in range(1, len(path)) if values.get(path[:depth], _ABSENT) is None), None)
    if not inside and unset is None:
        raise RecipeError(f"--explain {key}: the recipe has no such list element")
    field = field_at(Recipe, path)
    assert field is not None, f"{key} is neither a section nor a field"
    if unset is not None:
        shown = f"none, as {key_name(unset)} is null"
    else:
        shown = yaml_scalar(values[path]) if path in values else f"{len({at[len(path)] for at in inside})} elements"
    rows = {
        "meaning": field.description or "",
        "value": shown,
        "origin": _origin(loaded.origins, unset or path),
        "type": type_name(field),
        "default": "none, it must be set" if field.is_required() else yaml_scalar(field.default),
        "hashed": _HASHED[role_of(path)],
    }
    return key_name(path) + "\n" + "\n".join(f"  {name:<8} {text}" for name, text in rows.items())


_HASHED = {
    "meaning": "yes: another value is another stage",
    "meaning (by content)": "yes, by the content behind the path; the path itself is not hashed",
    "placement": "no: the stage stays the same stage",
}


def differences(first: LoadedRecipe, second: LoadedRecipe) -> list[Difference]:
    """The keys whose values differ, in the schema's order."""
    sides = [(dict(values_of(loaded.recipe)), loaded.origins) for loaded in (first, second)]
    (before, _), (after, _) = sides
    return [
        Difference(
            key=key_name(key),
            role=role_of(key),
            values=tuple(yaml_scalar(values[key]) if key in values else "(not there)" for values, _ in sides),
            origins=tuple(_origin(origins, key) if key in values else "" for values, origins in sides),
        )
        for key in before | after
        if before.get(key, _ABSENT) != after.get(key, _ABSENT)
    ]


_ABSENT = object()


def _section_text(section: type[Section], path: KeyPath) -> str:
    head = (section.__doc__ or "").partition("\n")[0]
    keys = [
        f"  {key_name((*path, name))}: {field.description or 'a section'}" for name, field in fields_of(section).items()
    ]
    return "\n".join([f"{key_name(path)}: {head}", *keys])


def _known_path(key: str) -> KeyPath:
    try:
        path = parse_key(key)
    except ValueError as error:
        raise RecipeError(f"--explain: {error}") from None
    if section_at(Recipe, path) is None and field_at(Recipe, path) is None:
        leaves = [key_name(leaf) for leaf in leaf_keys(Recipe)]
        near = nearest(key, leaves) or {leaf.rpartition(".")[2]: leaf for leaf in leaves}.get(key)
        meant = f"did you mean {near}? " if near else ""
        raise RecipeError(f"--explain {key}: unknown key; {meant}sections: {', '.join(sorted(fields_of(Recipe)))}")
    return path


def values_of(recipe: Recipe) -> Iterator[tuple[KeyPath, Any]]:
    """Every value of a recipe that is no section and no list of sections."""

    def walk(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if _is_section_list(value) else None
        if items is None:
            yield path, value
            return
        for step, inner in items:
            yield from walk(inner, (*path, step))

    return walk(recipe.model_dump(by_alias=True), ())


def _is_section_list(value: Any) -> bool:
    return isinstance(value, tuple) and any(isinstance(element, dict) for element in value)


def _origin(origins: Origins, path: KeyPath) -> str:
    return str(origins[path]) if path in origins else DEFAULT


def _yaml_lines(value: dict[str, Any], path: KeyPath, origins: Origins) -> Iterator[tuple[str, str]]:
    """Lines of YAML and the origin of each."""
    indent = "  " * len(path)
    for position, (name, inner) in enumerate(value.items()):
        here = (*path, name)
        in_list = bool(path) and isinstance(path[-1], int)
        head = f"{indent[:-2]}- {name}:" if in_list and position == 0 else f"{indent}{name}:"
        if isinstance(inner, dict):
            yield head, _origin(origins, here)
            yield from _yaml_lines(inner, here, origins)
        elif _is_section_list(inner):
            yield head, _origin(origins, here)
            for index, element in enumerate(inner):
                yield from _yaml_lines(element, (*here, index), origins)
        else:
            yield f"{head} {yaml_scalar(inner)}", _origin(origins, here)


def yaml_scalar(value: Any) -> str:
    """A value as YAML that reads back as the same value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(yaml_scalar, value))}]"
    if not isinstance(value, str):
        return repr(value)
    try:
        is_plain = parse_yaml(f"key: {value}", path="").data == {"key": value}
    except RecipeError:
        is_plain = False
    return value if is_plain else json.dumps(value)
