"""docs/reference/core-surface.md lists exactly the names of Megatron-Core that the product imports or hangs on."""

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


def listed_attributes() -> set[tuple[str, str]]:
    """(attribute, of) rows of the second table."""
    return set(re.findall(r"^\| `(\w+)` \| `(megatron\.core[\w.]+)` \|", PAGE.read_text(), flags=re.MULTILINE))


def attributes_of_requests() -> set[str]:
    """What saving takes from core's plan of a save: `request.X` and `self._request.X`."""
    tree = ast.parse((ROOT / "megatron_ext" / "training" / "saving.py").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if ast.unparse(node.value) in ("request", "self._request")}


def test_the_page_lists_what_the_code_imports() -> None:
    assert sorted(imported_names() - listed_names()) == [], "imported, but not on the page"
    assert sorted(listed_names() - imported_names()) == [], "on the page, but not imported"


def test_every_listed_name_can_be_imported() -> None:
    for name in sorted(listed_names()):
        module, attribute = name.rsplit(".", 1)
        parent = importlib.import_module(module)
        assert hasattr(parent, attribute) or importlib.import_module(name), name


def test_every_listed_attribute_is_there() -> None:
    rows = listed_attributes()
    assert len(rows) >= 7
    for attribute, owner in sorted(rows):
        module, name = owner.rsplit(".", 1)
        held_by = getattr(importlib.import_module(module), name, None) or importlib.import_module(owner)
        assert hasattr(held_by, attribute), f"{owner} has no {attribute}"


def test_the_page_lists_what_saving_takes_from_a_request() -> None:
    listed = {attribute for attribute, owner in listed_attributes() if owner.endswith(".AsyncRequest")}
    assert attributes_of_requests() == listed
