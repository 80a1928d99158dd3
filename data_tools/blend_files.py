"""Blend and source files, read and checked with everything below them.

Paths are relative to the file that writes them. A blend may name blends; a circle is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_tools.blend_plan import Blend, Entry, Source
from data_tools.errors import RecipeError
from data_tools.schema import BlendFileEntry, BlendRecipe, Section, SourceRecipe
from data_tools.strict_yaml import KeyPath, YamlDocument, load_yaml, nearest


@dataclass(frozen=True)
class SourceFile:
    """A source file, checked."""

    path: str
    recipe: SourceRecipe


@dataclass(frozen=True)
class BlendFile:
    """A blend file, checked, with what its entries name.

    Attributes:
        path: The file, as it is reached from the working directory.
        recipe: What it says.
        parts: The file that each entry names.
        places: `file:line: entries[i]` of each entry.
    """

    path: str
    recipe: BlendRecipe
    parts: tuple[SourceFile | BlendFile, ...]
    places: tuple[str, ...]

    def sources(self) -> Iterator[SourceFile]:
        """The sources below it, once for each way that leads to them."""
        for part in self.parts:
            if isinstance(part, BlendFile):
                yield from part.sources()
            else:
                yield part


def read_blend(path: str | Path) -> BlendFile:
    """Reads a blend file and all files below it.

    Raises:
        RecipeError: Everything that is wrong with the first file that has something wrong; a circle; two
            source files with one name.
    """
    if not Path(path).is_file():
        raise RecipeError(f"{path}: no such file; there are: {_yaml_files(Path(path).parent)}")
    file = read_file(path)
    if isinstance(file, SourceFile):
        raise RecipeError(f"{path}: this is a source file; name a blend file, such as recipes/blends/lmq.yaml")
    known: dict[str, str] = {}
    for source in file.sources():
        first = known.setdefault(source.recipe.source, source.path)
        if os.path.realpath(first) != os.path.realpath(source.path):
            raise RecipeError(f"{source.path}: source: {source.recipe.source!r} is the name of {first} too; rename one")
    return file


def read_file(path: str | Path, above: tuple[str, ...] = ()) -> SourceFile | BlendFile:
    """Reads a source or a blend file; which of the two shows in its keys.

    Args:
        path: The file.
        above: Files that led here, for circles.

    Raises:
        RecipeError: As for `read_blend`.
    """
    name = os.path.normpath(path)
    document = load_yaml(name)
    if "source" in document.data or "prefix" in document.data:
        return SourceFile(name, _checked(SourceRecipe, document))
    recipe = _checked(BlendRecipe, document)
    parts, places = [], []
    for index, entry in enumerate(recipe.entries):
        place = f"{name}:{document.marks['entries', index]}: entries[{index}]"
        parts.append(_read_part(name, entry, place, (*above, name)))
        places.append(place)
    return BlendFile(name, recipe, tuple(parts), tuple(places))


def as_source_or_blend(
    part: SourceFile | BlendFile, tokens: Mapping[str, int], *, label_tokens: int = 1
) -> Source | Blend:
    """The arithmetic's view of a file.

    Args:
        part: A source or blend file.
        tokens: Size of each source below it, by name.
        label_tokens: Tokens that the last sample of each reads beyond its length; 0 of packed rows.
    """
    if isinstance(part, BlendFile):
        return as_blend(part, tokens, label_tokens=label_tokens)
    return Source(part.recipe.source, tokens[part.recipe.source], label_tokens)


def as_blend(file: BlendFile, tokens: Mapping[str, int], *, label_tokens: int = 1) -> Blend:
    """The arithmetic's view of a blend file; see `as_source_or_blend`."""
    entries = []
    for entry, part, place in zip(file.recipe.entries, file.parts, file.places, strict=True):
        amount = (entry.amounts or [""])[0]
        entries.append(
            Entry(
                of=as_source_or_blend(part, tokens, label_tokens=label_tokens),
                place=f"{place}.{amount}" if amount else place,
                share=entry.share,
                tokens=entry.tokens,
                epochs=entry.epochs,
                max_epochs=entry.max_epochs,
                min_epochs=entry.min_epochs,
            )
        )
    return Blend(file.recipe.blend, tuple(entries), file.recipe.weighting, file.recipe.temperature)


def _read_part(file: str, entry: BlendFileEntry, place: str, above: tuple[str, ...]) -> SourceFile | BlendFile:
    part = os.path.normpath(Path(file).parent / entry.source)
    if part in above:
        raise RecipeError(f"{place}.source: a circle: {' -> '.join([*above, part])}; remove one entry")
    if not Path(part).is_file():
        raise RecipeError(f"{place}.source: {part}: no such file; there are: {_yaml_files(Path(part).parent)}")
    return read_file(part, above)


def _yaml_files(folder: Path) -> str:
    return ", ".join(sorted(str(found) for found in folder.glob("*.yaml"))) or "no YAML file"


def _checked[Kind: Section](kind: type[Kind], document: YamlDocument) -> Kind:
    try:
        return kind.model_validate(_with_tuples(document.data))
    except ValidationError as error:
        lines = [_problem(kind, document, detail) for detail in error.errors()]
        raise RecipeError("\n".join([*([f"{len(lines)} problems"] if lines[1:] else []), *lines])) from None


def _with_tuples(value: Any) -> Any:
    """Lists as tuples: the schema is strict and its sequences are frozen."""
    if isinstance(value, dict):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    return tuple(_with_tuples(inner) for inner in value) if isinstance(value, list) else value


def _problem(kind: type[Section], document: YamlDocument, detail: Any) -> str:
    path: KeyPath = detail["loc"]
    line = next(document.marks[path[:n]] for n in range(len(path), -1, -1) if path[:n] in document.marks)
    key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
    said = f"{detail['msg'].removeprefix('Value error, ')}"
    if detail["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(kind, path))
        near = nearest(str(path[-1]), allowed)
        said = f"unknown key; {f'did you mean {near}? ' if near else ''}allowed here: {', '.join(allowed)}"
    elif detail["type"] == "missing":
        said = "required and not set"
    elif detail["type"] != "value_error":
        said = f"{detail['input']!r} is not allowed: {said}"
    return f"{document.path}:{line}: {key}: {said}" if key else f"{document.path}:{line}: {said}"


def _fields_at(kind: type[Section], path: KeyPath) -> set[str]:
    if path[0] == "entries" and len(path) > 2:
        return set(BlendFileEntry.model_fields)
    if path[0] == "domain_shares" and len(path) > 1:
        return set(type(SourceRecipe.model_fields["domain_shares"].default).model_fields)
    return set(kind.model_fields)
