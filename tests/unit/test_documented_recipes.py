"""Every YAML block of the pages that claims to be a recipe is one: copied into a file, it validates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_ext.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
IS_RECIPE = re.compile(r"^stage: ", re.MULTILINE)
PAGES = ("README.md", "docs/how-to/fine-tune.md", "docs/how-to/train-with-rewards.md", "docs/reference/recipe.md")
BLOCKS = [
    pytest.param(block, id=f"{page}-{number}")
    for page in PAGES
    for number, block in enumerate(BLOCK.findall((ROOT / page).read_text(encoding="utf-8")), 1)
    if IS_RECIPE.search(block)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_documented_recipe_validates_in_recipes_demo(block: str, tmp_path: Path) -> None:
    for folder in ("demo", "models", "sources", "sites"):
        (tmp_path / folder).mkdir()
        for file in (ROOT / "recipes" / folder).iterdir():
            (tmp_path / folder / file.name).write_bytes(file.read_bytes())
    recipe = tmp_path / "demo" / "mine.yaml"
    recipe.write_text(block)
    assert load_recipe(recipe, site=tmp_path / "sites" / "laptop.yaml").recipe.stage in ("pretrain", "sft", "rl")


def test_each_page_has_a_block_that_is_a_recipe() -> None:
    assert {param.id.split("-yaml")[0].rsplit("-", 1)[0] for param in BLOCKS if param.id} == set(PAGES)
