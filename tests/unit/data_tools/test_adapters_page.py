"""docs/reference/adapters.md says what the registry holds."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from data_tools.adapters import NAMES, adapter_named
from data_tools.adapters.adapter import Adapter
from data_tools.inputs import INPUT_SUFFIXES
from data_tools.selection import Field

PAGE = (Path(__file__).parents[3] / "docs/reference/adapters.md").read_text(encoding="utf-8")


def row_of(adapter: Adapter) -> str:
    required = ", ".join(" or ".join(f"`{name}`" for name in ways) for ways in adapter.columns.required)
    optional = ", ".join(f"`{name}`" for name in adapter.columns.optional) or "none"
    return f"| `{adapter.name}` | {adapter.data_set} | {required} | {optional} | {adapter.yields} | {adapter.trust} |"


def test_the_table_is_the_registry() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `") and line.count(" | ") == 5]
    assert rows == [row_of(adapter_named(name)) for name in NAMES]


def test_the_page_names_all_suffixes_and_fields() -> None:
    for name in (*INPUT_SUFFIXES, *get_args(Field)):
        assert f"`{name}`" in PAGE
