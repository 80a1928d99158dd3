"""A record holds fields of the types that it names, or it is not made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from data_tools.checked_record import BadField, CheckedRecord, Count, Size


@dataclass(frozen=True, kw_only=True)
class Inner(CheckedRecord):
    size: Size


@dataclass(frozen=True, kw_only=True)
class Outer(CheckedRecord):
    name: str
    count: Count = 0
    share: float = 0.5
    is_last: bool = False
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    inners: list[Inner] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def test_fields_of_a_file_become_records_all_the_way_down() -> None:
    made = Outer.of({"name": "n", "inner": {"size": 1}, "inners": [{"size": 2}], "counts": {"x": 3}, "share": 1})
    assert made == Outer(name="n", inner=Inner(size=1), inners=[Inner(size=2)], counts={"x": 3}, share=1.0)
    assert isinstance(made.share, float)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": 1}, "name: 1 is no text"),
        ({"name": None}, "name: None is no text"),
        ({"count": -1}, "count: -1 is below 0"),
        ({"count": True}, "count: True is no whole number"),
        ({"count": "1"}, "count: '1' is no whole number"),
        ({"count": 1.0}, "count: 1.0 is no whole number"),
        ({"share": "half"}, "share: 'half' is no number"),
        ({"is_last": 1}, "is_last: 1 is no true or false"),
        ({"kind": "c"}, "kind: 'c' is no 'a' or 'b'"),
        ({"inner": {"size": 0}}, "inner.size: 0 is below 1"),
        ({"inner": {}}, "inner.size: Field required"),
        ({"inner": [1]}, "inner: [1] is no such object or list"),
        ({"inners": [{"size": 1}, {"size": "x"}]}, "inners.1.size: 'x' is no whole number"),
        ({"inners": {}}, "inners: {} is no such object or list"),
        ({"counts": {"x": None}}, "counts.x: None is no whole number"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_a_field_of_another_type_is_refused_by_its_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadField) as caught:
        Outer.of({"name": "n"} | changes)
    assert str(caught.value) == said


def test_a_record_made_in_python_is_checked_too() -> None:
    with pytest.raises(BadField, match="count: -1 is below 0"):
        Outer(name="n", count=-1)
