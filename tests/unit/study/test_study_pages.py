"""The pages on studies name every key, every field of the JSON, and files that are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from megatron_ext.recipe.keys import fields_of
from megatron_ext.recipe.study_load import load_arm, load_study
from megatron_ext.recipe.study_schema import (
    ArmRecipe,
    ComparisonRecipe,
    ConfoundRecipe,
    FindingRecipe,
    MatrixRecipe,
    PaperNumbers,
    StudyRecipe,
)
from megatron_ext.study import study_plan

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = (ROOT / "docs/reference/study.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs/tutorials/first-arm.md").read_text(encoding="utf-8")
SECTIONS = (StudyRecipe, ArmRecipe, MatrixRecipe, ConfoundRecipe, FindingRecipe, ComparisonRecipe, PaperNumbers)
PARTS = [
    part
    for part in vars(study_plan).values()
    if isinstance(part, type) and issubclass(part, study_plan.StudyPart) and part is not study_plan.StudyPart
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_the_reference_names_every_key_of_a_file(section: type[BaseModel]) -> None:
    missing = [name for name in fields_of(section) if not re.search(rf"(`|\b){name}(`|:)", REFERENCE)]  # type: ignore[arg-type]
    assert missing == []


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_the_reference_names_every_field_of_the_json(part: type[BaseModel]) -> None:
    assert [name for name in part.model_fields if f"`{name}`" not in REFERENCE and f"`{name}[]`" not in REFERENCE] == []


def test_the_files_of_the_tutorial_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").symlink_to(ROOT / "recipes")
    Path("my").mkdir()
    for name, text in re.findall(r"cat > (my/\S+) <<'YAML'\n(.*?)^YAML$", TUTORIAL, re.MULTILINE | re.DOTALL):
        Path(name).write_text(text)
    assert load_arm("my/half-shq.yaml").id == "half-shq"
    assert [arm.id for arm in load_study("my/study.yaml").arms] == ["half-shq", "base-shq", "shq-shq"]
