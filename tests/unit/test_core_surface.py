"""docs/reference/core-surface.md lists exactly the names of Megatron-Core that the product imports."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "core-surface.md"


def imported_names() -> set[str]:
    names = set()
    for folder in ("megatron_ext", "data_tools"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megatron."):
                    names |= {f"{node.module}.{alias.name}" for alias in node.names}
                elif isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names if alias.name.startswith("megatron.")}
    return names


def listed_names() -> set[str]:
    return set(re.findall(r"^\| `(megatron\.core[\w.]+)` \|", PAGE.read_text(), flags=re.MULTILINE))


def test_the_page_lists_what_the_code_imports() -> None:
    assert sorted(imported_names() - listed_names()) == [], "imported, but not on the page"
    assert sorted(listed_names() - imported_names()) == [], "on the page, but not imported"


def test_every_listed_name_can_be_imported() -> None:
    for name in sorted(listed_names()):
        module, attribute = name.rsplit(".", 1)
        parent = importlib.import_module(module)
        assert hasattr(parent, attribute) or importlib.import_module(name), name
