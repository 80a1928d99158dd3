"""Frozen dataclasses whose every field is checked against its type: what a manifest is read into.

A finished job's check reads one manifest, and importing pydantic took twice as long as all the rest of it.

| annotation of a field             | what it takes                                  |
|-----------------------------------|------------------------------------------------|
| str, int, bool, Literal           | exactly that: no "5" or true for 5             |
| float                             | a whole number too                             |
| Annotated[int, AtLeast(1)]        | an int that is not smaller                     |
| list[T], dict[K, T], T or None    | as they say; K is str or a Literal             |
| a `CheckedRecord`                 | one, or a dict of its fields                   |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Self, Union, cast, get_args, get_origin, get_type_hints


class BadField(ValueError):
    """A field that is missing, unknown, or holds what it must not; the message starts with its key."""


class AtLeast(NamedTuple):
    """The smallest number that a field takes."""

    number: int


Count = Annotated[int, AtLeast(0)]
Size = Annotated[int, AtLeast(1)]


class CheckedRecord:
    """Base of a frozen dataclass that refuses values of other types, however it is made."""

    def __post_init__(self) -> None:
        """Checks each field.

        Raises:
            BadField: At the first that does not fit.
        """
        record: Any = type(self)  # mypy takes a class for no key of a cache
        for key, kind in _kinds(record).items():
            object.__setattr__(self, key, _fitting(getattr(self, key), kind, key))

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Self:
        """The record of some fields as they stand in a file.

        Raises:
            BadField: If one is missing, unknown, or does not fit.
        """
        return _made(cls, written, "")


@cache
def _kinds(record: type) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)


def _made[R](record: type[R], written: Mapping[str, Any], place: str) -> R:
    known = fields(cast(Any, record))
    for field in known:
        if field.name not in written and field.default is MISSING and field.default_factory is MISSING:
            raise BadField(f"{place}{field.name}: Field required")
    if unknown := sorted(written.keys() - {field.name for field in known}):
        raise BadField(f"{place}{unknown[0]}: Extra inputs are not permitted")
    try:
        return record(**written)
    except BadField as error:
        raise BadField(f"{place}{error}") from None


def _fitting(value: Any, kind: Any, key: str) -> Any:
    """The value as the field holds it."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        if _fitting(value, inside[0], key) < inside[1].number:
            raise BadField(f"{key}: {value} is below {inside[1].number}")
        return value
    if origin in (Union, UnionType):
        return None if value is None else _fitting(value, next(one for one in inside if one is not NoneType), key)
    if origin is list and isinstance(value, list):
        return [_fitting(one, inside[0], f"{key}.{number}") for number, one in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {
            _fitting(name, inside[0], key): _fitting(one, inside[1], f"{key}.{name}") for name, one in value.items()
        }
    if origin is Literal and isinstance(value, str) and value in inside:
        return value
    if origin is None and issubclass(kind, CheckedRecord) and isinstance(value, dict):
        return _made(kind, value, f"{key}.")
    if kind is float and type(value) is int:
        return float(value)
    if origin is None and (type(value) is kind or (issubclass(kind, CheckedRecord) and isinstance(value, kind))):
        return value
    raise BadField(f"{key}: {value!r} is no {_said(kind)}")


def _said(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(kind, "such object or list")
