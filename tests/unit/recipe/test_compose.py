"""Files and overrides become one tree, and every value keeps its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import RecipeError
from megatron_ext.recipe.compose import compose


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(**files: str) -> None:
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)


def data_of(file: str, *overrides: str) -> dict[str, Any]:
    return compose(file, overrides=overrides).data


def place_of(path: tuple[str | int, ...], file: str, *overrides: str) -> str:
    return str(compose(file, overrides=overrides).origin(path))


def refusal(file: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        compose(file, overrides=overrides)
    return str(caught.value)


def test_maps_merge_and_lists_replace_along_the_chain() -> None:
    write(
        top="optimizer: {lr: 1, eps: 2}\nlist: [1, 2, 3]\n",
        middle="extends: top.yaml\noptimizer: {lr: 3}\n",
        leaf="extends: middle.yaml\nlist: [4]\n",
    )
    assert data_of("leaf.yaml") == {"optimizer": {"lr": 3, "eps": 2}, "list": [4]}


def test_each_value_keeps_the_line_of_the_file_that_set_it() -> None:
    write(top="optimizer:\n  lr: 1\n  eps: 2\n", leaf="extends: top.yaml\n\noptimizer:\n  lr: 3\n")
    assert place_of(("optimizer", "lr"), "leaf.yaml") == "leaf.yaml:4"
    assert place_of(("optimizer", "eps"), "leaf.yaml") == "top.yaml:3"


def test_a_key_that_nobody_set_has_the_place_of_its_section() -> None:
    write(leaf="stage: pretrain\noptimizer:\n  lr: 1\n")
    assert place_of(("optimizer", "min_lr"), "leaf.yaml") == "leaf.yaml:2"


def test_a_replaced_list_leaves_no_places_of_its_old_elements() -> None:
    write(top="list:\n  - 1\n  - 2\n", leaf="extends: top.yaml\nlist: [3]\n")
    assert ("list", 1) not in compose("leaf.yaml").origins


def test_three_levels_above_a_file_are_one_too_many() -> None:
    write(a="x: 1\n", b="extends: a.yaml\n", c="extends: b.yaml\n", d="extends: c.yaml\n")
    assert data_of("c.yaml") == {"x": 1}
    assert refusal("d.yaml") == (
        "b.yaml:1: extends: 3 levels above d.yaml, at most 2 are allowed: d.yaml -> c.yaml -> b.yaml -> a.yaml; "
        "write the values of one level into another, or those of an arm's stage into its set:"
    )


def test_a_circle_of_extends_is_named() -> None:
    write(a="extends: b.yaml\n", b="extends: a.yaml\n")
    assert refusal("a.yaml") == "b.yaml:1: extends: a circle: a.yaml -> b.yaml -> a.yaml; remove one extends"


def test_a_missing_parent_lists_what_is_there() -> None:
    write(a="extends: bse.yaml\n", base="x: 1\n")
    assert refusal("a.yaml") == "a.yaml:1: extends: bse.yaml: no such file; there are: a.yaml, base.yaml"


def test_extends_takes_one_path() -> None:
    write(a="extends: [b.yaml, c.yaml]\n")
    assert refusal("a.yaml").startswith("a.yaml:1: extends: ['b.yaml', 'c.yaml'] is no path")


def test_a_model_path_becomes_the_model_with_the_places_of_its_file() -> None:
    write(small="name: small\nhidden_size: 8\n", leaf="model: small.yaml\n")
    assert data_of("leaf.yaml") == {"model": {"name": "small", "hidden_size": 8}}
    assert place_of(("model", "hidden_size"), "leaf.yaml") == "small.yaml:2"
    assert place_of(("model",), "leaf.yaml") == "leaf.yaml:1"


def test_keys_of_a_model_merge_over_the_parents_model_file() -> None:
    write(
        small="name: small\nhidden_size: 8\n",
        base="model: small.yaml\n",
        leaf="extends: base.yaml\nmodel: {hidden_size: 16}\n",
    )
    assert data_of("leaf.yaml")["model"] == {"name": "small", "hidden_size": 16}


def test_a_model_path_replaces_the_parents_model_whole() -> None:
    write(
        small="name: small\nhidden_size: 8\n",
        large="name: large\n",
        base="model: small.yaml\n",
        leaf="extends: base.yaml\nmodel: large.yaml\n",
    )
    assert data_of("leaf.yaml")["model"] == {"name": "large"}


def test_paths_are_relative_to_the_file_that_wrote_them() -> None:
    Path("deep").mkdir()
    Path("models").mkdir()
    Path("models/m.yaml").write_text("name: m\n")
    Path("deep/base.yaml").write_text("model: ../models/m.yaml\ndata: {blend: [{source: s.yaml}]}\n")
    write(leaf="extends: deep/base.yaml\n")
    data = data_of("leaf.yaml")
    assert data["model"] == {"name": "m"}
    assert data["data"]["blend"] == [{"source": "deep/s.yaml"}]


def test_an_override_is_read_by_the_rules_of_the_files() -> None:
    write(leaf="optimizer: {lr: 1, eps: 2}\n")
    data = data_of("leaf.yaml", "optimizer.lr=1e-4", "precision=off", "a.b=null", "pattern=*M-")
    assert data == {"optimizer": {"lr": 1e-4, "eps": 2}, "precision": "off", "a": {"b": None}, "pattern": "*M-"}


def test_a_mapping_merges_and_a_list_replaces_in_overrides_too() -> None:
    write(leaf="optimizer: {lr: 1, eps: 2}\nlist: [1, 2]\n")
    data = data_of("leaf.yaml", "optimizer={lr: 3}", "list=[5]")
    assert data == {"optimizer": {"lr": 3, "eps": 2}, "list": [5]}


def test_later_overrides_win() -> None:
    write(leaf="seed: 1\n")
    assert data_of("leaf.yaml", "seed=2", "seed=3") == {"seed": 3}


def test_a_list_element_is_replaced_whole_and_its_neighbours_stay() -> None:
    write(leaf="data:\n  blend:\n    - {source: a.yaml, share: 0.5}\n    - {source: b.yaml, share: 0.5}\n")
    override = "data.blend[1]={source: c.yaml}"
    assert data_of("leaf.yaml", override)["data"]["blend"] == [
        {"source": "a.yaml", "share": 0.5},
        {"source": "c.yaml"},
    ]
    assert place_of(("data", "blend", 0, "share"), "leaf.yaml", override) == "leaf.yaml:3"
    assert place_of(("data", "blend", 1, "source"), "leaf.yaml", override) == f"--set {override}"


def test_one_key_of_a_list_element_can_be_overridden() -> None:
    write(leaf="data:\n  blend:\n    - {source: a.yaml, share: 0.5}\n")
    override = "data.blend[0].share=0.25"
    assert data_of("leaf.yaml", override)["data"]["blend"] == [{"source": "a.yaml", "share": 0.25}]
    assert place_of(("data", "blend", 0, "source"), "leaf.yaml", override) == "leaf.yaml:3"


def test_an_element_that_is_not_there_is_refused_with_the_number_that_are() -> None:
    write(leaf="data: {blend: [{share: 1}]}\n")
    assert refusal("leaf.yaml", "data.blend[1].share=1") == (
        "--set data.blend[1].share=1: data.blend has elements 0 to 0"
    )


def test_a_model_path_in_an_override_is_relative_to_the_working_directory() -> None:
    write(small="name: small\n", large="name: large\nhidden_size: 8\n", leaf="model: small.yaml\n")
    data = data_of("leaf.yaml", "model=large.yaml", "model.hidden_size=16")
    assert data["model"] == {"name": "large", "hidden_size": 16}


def test_an_override_without_a_value_says_its_form() -> None:
    write(leaf="seed: 1\n")
    assert refusal("leaf.yaml", "seed") == "--set seed: write --set key=value, such as --set optimizer.lr=1e-3"
