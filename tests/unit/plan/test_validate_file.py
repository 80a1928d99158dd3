"""Every kind of recipe file is checked as far as it goes without data."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import DataError, RecipeError
from megatron_ext.plan.validate import validate_file
from tests.support.pencil_project import PencilProject


def test_a_recipe_with_its_data_has_an_id(project: PencilProject) -> None:
    identity = project.plan().stage_id
    assert validate_file(project.recipe) == f"pretrain.yaml: ok: pretrain recipe, model pencil, 640 tokens, {identity}"


def test_a_recipe_without_its_data_is_checked_without(project: PencilProject) -> None:
    Path("data/a.manifest.json").unlink()
    assert validate_file(project.recipe).endswith("640 tokens, data not built yet")


def test_a_recipe_without_its_data_can_still_be_wrong(project: PencilProject) -> None:
    Path("data/a.manifest.json").unlink()
    project.edit("pretrain.yaml", "warmup_tokens: 128", "warmup_tokens: 1M")
    with pytest.raises(RecipeError, match="do not fit"):
        validate_file(project.recipe)


def test_data_that_is_there_but_damaged_is_an_error(project: PencilProject) -> None:
    Path("data/a.bin").write_bytes(b"")
    with pytest.raises(DataError, match="has 0 bytes"):
        validate_file(project.recipe)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("model.yaml", "model.yaml: ok: model pencil, 267,464 parameters"),
        ("a.yaml", "a.yaml: ok: source a, math"),
        ("site.yaml", "site.yaml: ok: site, data_root ./data, run_root ./runs"),
    ],
)
def test_other_files_say_what_they_are(project: PencilProject, name: str, line: str) -> None:
    assert validate_file(Path(name)) == line


def test_a_model_file_is_checked_like_the_model_of_a_recipe(project: PencilProject) -> None:
    project.edit("model.yaml", "num_query_groups: 2", "num_query_groups: 3")
    with pytest.raises(RecipeError, match=r"model.yaml:7: num_query_groups: 3 does not divide num_attention_heads 4"):
        validate_file(Path("model.yaml"))
