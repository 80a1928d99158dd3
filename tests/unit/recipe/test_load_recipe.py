"""A loaded recipe holds its sources and its site, and every file of the recipes folder is recognised."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.recipe.load import LoadedRecipe, load_file, load_recipe
from megatron_ext.recipe.schema import ModelRecipe, Recipe, Section, SiteRecipe, SourceRecipe
from tests.support.pencil_project import PencilProject


def test_sources_stand_in_the_order_of_the_blend(project: PencilProject) -> None:
    loaded = project.load()
    assert [source.source for source in loaded.sources] == ["a", "b"]
    assert [entry.share for entry in loaded.recipe.data.blend] == [0.75, 0.25]


def test_quantities_in_human_form_become_numbers(project: PencilProject) -> None:
    recipe = project.load("budget.tokens=1.5K", "optimizer.lr=2e-3", "training.max_steps=1e1").recipe
    assert (recipe.budget.tokens, recipe.optimizer.lr, recipe.training.max_steps) == (1500, 0.002, 10)


def test_the_place_of_a_key_of_recipe_source_and_site_is_known(project: PencilProject) -> None:
    loaded = project.load()
    assert str(loaded.origin(("budget", "tokens"))) == "pretrain.yaml:8"
    assert str(loaded.origin(("sources", 1, "prefix"))) == "b.yaml:2"
    assert str(loaded.origin(("site", "run_root"))) == "site.yaml:2"


def test_the_default_site_is_the_laptop(project: PencilProject) -> None:
    assert load_recipe(project.recipe).site == SiteRecipe(data_root="data", run_root="runs")


def test_the_path_is_kept_as_given(project: PencilProject) -> None:
    assert load_recipe("./pretrain.yaml", site=project.site).path == "./pretrain.yaml"


def test_a_default_is_the_same_value_as_if_it_were_written(project: PencilProject) -> None:
    written = project.load("data.blend[0].max_epochs=1").recipe.data.blend[0].max_epochs
    default = project.load().recipe.data.blend[0].max_epochs
    assert (type(written), written) == (type(default), default) == (float, 1.0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("model.yaml", ModelRecipe), ("a.yaml", SourceRecipe), ("site.yaml", SiteRecipe), ("pretrain.yaml", LoadedRecipe)],
)
def test_a_file_is_recognised_by_its_keys(project: PencilProject, name: str, kind: type[object]) -> None:
    assert isinstance(load_file(project.root / name), kind)


def test_a_file_without_telling_keys_is_recognised_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "empty.yaml").write_text("{}\n")
    assert load_file(tmp_path / "sites" / "empty.yaml") == SiteRecipe()


def test_every_key_of_the_schema_says_what_it_is() -> None:
    def undescribed(section: type[Section], prefix: str) -> list[str]:
        missing = []
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                missing += undescribed(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                missing.append(f"{prefix}{name}")
        return missing

    assert [undescribed(kind, "") for kind in (Recipe, SourceRecipe, SiteRecipe)] == [[], [], []]
