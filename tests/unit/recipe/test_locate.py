"""Recipes are found in the working directory, in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import RecipeError
from megatron_ext.recipe import locate
from megatron_ext.recipe.locate import beside, shown

REPOSITORY = Path(__file__).parents[3]


def test_a_file_of_the_working_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "recipes" / "demo" / "pretrain.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("stage: pretrain\n")
    monkeypatch.chdir(tmp_path)
    assert locate.locate("recipes/demo/pretrain.yaml") == Path("recipes/demo/pretrain.yaml")


def test_the_checkouts_recipes_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate.locate("recipes/demo/pretrain.yaml") == REPOSITORY / "recipes" / "demo" / "pretrain.yaml"


def test_the_recipes_of_an_installed_package_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "megatron_ext"
    shipped = package / "_recipes" / "demo" / "pretrain.yaml"
    shipped.parent.mkdir(parents=True)
    shipped.write_text("stage: pretrain\n")
    monkeypatch.setattr(locate, "_PACKAGE", package)
    monkeypatch.chdir(tmp_path)
    assert locate.locate("recipes/demo/pretrain.yaml") == shipped


def test_a_missing_recipe_names_every_place_that_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        locate.locate("recipes/demo/nothing.yaml")
    places = [tmp_path / "recipes", REPOSITORY / "megatron_ext" / "_recipes", REPOSITORY / "recipes"]
    assert str(caught.value).splitlines() == [
        "recipes/demo/nothing.yaml: no such file; looked for",
        *(f"  {place}/demo/nothing.yaml" for place in places),
    ]


def test_a_file_that_is_no_shipped_recipe_is_looked_for_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        locate.locate(tmp_path / "mine.yaml")
    assert str(caught.value).count("mine.yaml") == 2


def test_paths_are_shown_relative_below_the_working_directory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "a" / ".." / "b.yaml") == "b.yaml"
    assert shown("/elsewhere/b.yaml") == "/elsewhere/b.yaml"
    assert beside("recipes/demo/x.yaml", "../models/m.yaml") == "recipes/models/m.yaml"


def test_a_mistyped_name_is_answered_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        locate.locate("recipes/demo/pretrian.yaml")
    assert str(caught.value).endswith("\n  Did you mean recipes/demo/pretrain.yaml?")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder; name one of its files"):
        locate.locate(tmp_path)
