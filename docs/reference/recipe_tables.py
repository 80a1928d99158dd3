"""Writes the tables of docs/reference/recipe.md from the schema: `python docs/reference/recipe_tables.py`.

The page's prose is written by hand around one block, which stands between the two marks below.
A test compares the block with `render_tables()`, so that the page cannot tell another story than the code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from megatron_ext.recipe.explain import yaml_scalar
from megatron_ext.recipe.keys import fields_of, type_name
from megatron_ext.recipe.schema import BlendRecipe, Recipe, SiteRecipe, SourceRecipe

PAGE = Path(__file__).with_name("recipe.md")
BEGIN = "<!-- tables: written by recipe_tables.py -->\n"
END = "<!-- end of tables -->\n"

Row = tuple[str, str, str, str]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone or in a tuple or a union, or None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in get_args(annotation) if (section := _section_in(part))), None)


def _default(field: FieldInfo) -> str:
    """The default as a recipe would write it."""
    if field.is_required():
        return "required"
    if field.default in (None, ""):
        return "nothing"
    return f"`{yaml_scalar(field.default)}`"


def _rows(section: type[BaseModel], prefix: str = "") -> list[Row]:
    rows: list[Row] = []
    for name, field in fields_of(section).items():
        inner = _section_in(field.annotation)
        if inner is not None and not issubclass(section, inner):  # keys of its own again need no second explanation
            kinds = (field.annotation, *get_args(field.annotation))
            many = "[]" if any(get_origin(kind) is tuple for kind in kinds) else ""
            rows += _rows(inner, f"{prefix}{name}{many}.")
        else:
            meaning = (field.description or "").replace("|", "\\|")
            rows.append((f"{prefix}{name}", type_name(field), _default(field), meaning))
    return rows


def _table(rows: list[Row]) -> str:
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{key}` | {values} | {default} | {meaning} |" for key, values, default, meaning in rows]
    return "\n".join(lines) + "\n"


def render_tables() -> str:
    """Every key of a recipe by section, of a source, a blend and a site file, as markdown tables."""
    sections: dict[str, list[Row]] = {}
    for row in _rows(Recipe):
        sections.setdefault(row[0].split(".")[0] if "." in row[0] else "top level", []).append(row)
    sections["A source file"] = _rows(SourceRecipe)
    sections["A blend file"] = _rows(BlendRecipe)
    sections["A site file"] = _rows(SiteRecipe)
    return "\n".join(f"### {title}\n\n{_table(rows)}" for title, rows in sections.items())


def with_tables(page: str) -> str:
    """`page` with the block between the marks replaced by the current tables."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render_tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
