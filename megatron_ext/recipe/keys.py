"""The keys of the schema as paths: `data.blend[1].share` is ("data", "blend", 1, "share")."""

from __future__ import annotations

import re
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from data_tools.strict_yaml import KeyPath
from megatron_ext.recipe.schema import CONTENT_KEYS, PLACEMENT_KEYS, Section

_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_BOUNDS = ((Gt, "gt", "greater than"), (Ge, "ge", "at least"), (Lt, "lt", "less than"), (Le, "le", "at most"))


def key_name(path: KeyPath) -> str:
    """A key path as people write it.

    >>> key_name(("data", "blend", 1, "share"))
    'data.blend[1].share'
    """
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def parse_key(text: str) -> KeyPath:
    """Reads what `key_name` writes.

    Raises:
        ValueError: The text is no key.
    """
    steps: list[str | int] = []
    position = 0
    while match := _STEP.match(text, position):
        steps.append(match[1] if match[2] is None else int(match[2]))
        position = match.end()
    if not steps or position != len(text) or text.startswith((".", "[")):
        raise ValueError(f"{text!r} is no key; write one such as optimizer.lr or data.blend[1].share")
    return tuple(steps)


def fields_of(section: type[Section]) -> dict[str, FieldInfo]:
    """The fields of a section by the names that recipes write; Python reserves some of these words."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def section_at(root: type[Section], path: KeyPath) -> type[Section] | None:
    """The section that stands at a path of the schema, if one does."""
    if not path:
        return root
    field = field_at(root, path[:-1]) if isinstance(path[-1], int) else field_at(root, path)
    return None if field is None else _section_of(field.annotation, inside_list=isinstance(path[-1], int))


def field_at(root: type[Section], path: KeyPath) -> FieldInfo | None:
    """The field that a path names, if the schema has it."""
    if not path or isinstance(path[-1], int):
        return None
    section = section_at(root, path[:-1])
    return None if section is None else fields_of(section).get(path[-1])


def leaf_keys(root: type[Section], prefix: KeyPath = ()) -> list[KeyPath]:
    """Every key of the schema that holds a value; a list of sections counts as its first element."""
    leaves: list[KeyPath] = []
    for name, field in fields_of(root).items():
        path = (*prefix, name)
        if (section := _section_of(field.annotation, inside_list=False)) is not None:
            leaves += leaf_keys(section, path)
        elif (section := _section_of(field.annotation, inside_list=True)) is not None:
            leaves += leaf_keys(section, (*path, 0))
        else:
            leaves.append(path)
    return leaves


def role_of(path: KeyPath) -> str:
    """What a key is to a stage's identity: `meaning`, `meaning (by content)` or `placement`."""
    names = [step for step in path if isinstance(step, str)]
    prefixes = {".".join(names[:length]) for length in range(1, len(names) + 1)}
    if prefixes & PLACEMENT_KEYS:
        return "placement"
    return "meaning (by content)" if prefixes & CONTENT_KEYS else "meaning"


def type_name(field: FieldInfo) -> str:
    """What a key may hold, in words.

    >>> from megatron_ext.recipe.schema import OptimizerRecipe
    >>> type_name(OptimizerRecipe.model_fields["lr"])
    'a number such as 0.1 or 1e-4, greater than 0'
    """
    bounds = [
        f"{words} {getattr(bound, attribute):g}"
        for bound in field.metadata
        for kind, attribute, words in _BOUNDS
        if isinstance(bound, kind)
    ]
    return ", ".join([_plain_type_name(field.annotation), *bounds])


def _plain_type_name(annotation: Any) -> str:
    if get_origin(annotation) in (Union, UnionType):
        kept = [argument for argument in get_args(annotation) if argument is not NoneType]
        return f"{_plain_type_name(kept[0])}, or null"
    if get_origin(annotation) is Literal:
        return f"one of: {', '.join(sorted(map(str, get_args(annotation))))}"
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _plain_type_name(get_args(annotation)[0])
    if _section_of(annotation, inside_list=True) is not None:
        return "a list of sections"
    if _section_of(annotation, inside_list=False) is not None:
        return "a section"
    if get_origin(annotation) is tuple:
        return f"a list, each {_plain_type_name(get_args(annotation)[0])}"
    return _TYPE_NAMES[annotation]


_TYPE_NAMES: dict[Any, str] = {
    int: "a count such as 8192, 1.5M or 20B",
    float: "a number such as 0.1 or 1e-4",
    bool: "true or false",
    str: "text",
}


def _section_of(annotation: Any, *, inside_list: bool) -> type[Section] | None:
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(argument for argument in get_args(annotation) if argument is not NoneType)
    if inside_list:
        annotation = get_args(annotation)[0] if get_origin(annotation) is tuple else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
