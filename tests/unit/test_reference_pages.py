"""The pages under docs/ say what the code says, and their links lead somewhere."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from data_tools import errors
from data_tools.manifest import Manifest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def recipe_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_tables", ROOT / "docs/reference/recipe_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them: lower case, punctuation dropped, spaces to hyphens."""
    headings = HEADING.findall(CODE_BLOCK.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_recipe_page_holds_the_tables_of_the_schema() -> None:
    tables = recipe_tables()
    text = page("docs/reference/recipe.md")
    assert text == tables.with_tables(text), "renew it: python docs/reference/recipe_tables.py"


def test_the_recipe_tables_name_nested_keys_and_their_defaults() -> None:
    lines = recipe_tables().render_tables().splitlines()
    assert (
        "| `data.blend[].share` | a number such as 0.1 or 1e-4, greater than 0, at most 1 | required | "
        in "\n".join(lines)
    )
    assert "| `precision` | one of: bf16, fp32 | `bf16` | Numbers of the forward and backward pass. |" in lines


@pytest.mark.parametrize("field", sorted(field.name for field in fields(Manifest)))
def test_the_manifest_page_names_every_field(field: str) -> None:
    assert f"| `{field}` |" in page("docs/reference/manifest.md")


@pytest.mark.parametrize("name", [name for name in vars(errors) if name.endswith("Error")])
def test_the_errors_page_names_every_class_with_its_exit_code(name: str) -> None:
    code = getattr(errors, name).exit_code
    rows = [line for line in page("docs/reference/errors-and-exit-codes.md").splitlines() if f"`{name}`" in line]
    assert len(rows) == 1
    assert rows[0].startswith(f"| {code} |")


def test_the_readme_has_at_most_120_lines() -> None:
    assert len(page("README.md").splitlines()) <= 120


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    broken = []
    for link in LINK.findall(CODE_BLOCK.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target) if target else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


def test_anchors_are_those_of_headings_outside_code() -> None:
    assert anchors("# D_ALF' (2x)\n```\n# no heading\n```\n## Not stated\n") == {"d_alf-2x", "not-stated"}


@pytest.mark.parametrize("source", sorted(ROOT.glob("recipes/**/*.yaml")), ids=lambda path: path.name)
def test_a_recipe_cites_sections_of_the_paper_page_that_exist(source: Path) -> None:
    cited = re.findall(r"docs/reference/paper\.md#([\w-]+)", source.read_text(encoding="utf-8"))
    assert set(cited) <= anchors(page("docs/reference/paper.md"))
