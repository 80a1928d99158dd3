"""A resolved recipe is complete, loads to itself, and says where each value comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import RecipeError
from megatron_ext.recipe.explain import differences, explain, resolved_yaml
from megatron_ext.recipe.load import load_recipe
from tests.support.pencil_project import PencilProject


def test_the_resolved_recipe_loads_to_the_same_recipe(project: PencilProject) -> None:
    project.edit("model.yaml", '"M-M*M-"', '"*M-M"')
    loaded = project.load("logging.wandb_project='12: #x'")
    Path("resolved.yaml").write_text(resolved_yaml(loaded))
    assert load_recipe("resolved.yaml", site=project.site).recipe == loaded.recipe


def test_every_line_says_where_its_value_comes_from(project: PencilProject) -> None:
    loaded = project.load("seed=7")
    lines = [line.split("  # ") for line in resolved_yaml(loaded).splitlines()]
    origins = {text.strip(): origin for text, origin in lines}
    assert origins["lr: 0.003"] == "pretrain.yaml:14"
    assert origins["hidden_size: 64"] == "model.yaml:3"
    assert origins["beta2: 0.95"] == "default"
    assert origins["seed: 7"] == "--set seed=7"


def test_a_key_is_explained_with_value_origin_type_and_meaning(project: PencilProject) -> None:
    assert explain(project.load(), "optimizer.lr").splitlines() == [
        "optimizer.lr",
        "  meaning  Peak learning rate.",
        "  value    0.003",
        "  origin   pretrain.yaml:14",
        "  type     a number such as 0.1 or 1e-4, greater than 0",
        "  default  none, it must be set",
        "  hashed   yes: another value is another stage",
    ]


def test_a_key_of_a_section_that_is_not_set_is_explained_too(project: PencilProject) -> None:
    lines = explain(project.load(), "fp8.recipe").splitlines()
    assert lines[0] == "fp8.recipe"
    assert lines[2:6] == [
        "  value    none, as fp8 is null",
        "  origin   default",
        "  type     one of: blockwise, tensorwise",
        "  default  none, it must be set",
    ]


def test_a_section_is_explained_by_its_keys(project: PencilProject) -> None:
    assert explain(project.load(), "budget").splitlines() == [
        "budget: How much is read.",
        "  budget.tokens: pretrain: processed tokens of this stage; rounded to whole steps as planned. rl: sampled "
        "tokens behind which it ends early; 0: none.",
        "  budget.examples: sft: conversations to draw from the blend; every one is read sft.passes times.",
        "  budget.steps: rl: steps of training.global_batch_size prompts.",
        "  budget.prompts: rl, instead of steps: prompts to sample; whole steps of them.",
        "  budget.epochs: rl, instead of steps: passes over the prompt set; whole steps of them.",
    ]


def test_a_list_is_explained_by_its_length(project: PencilProject) -> None:
    assert "  value    2 elements\n" in explain(project.load(), "data.blend")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("optimizer.lrr", "unknown key; did you mean optimizer.lr?"),
        ("sequence_length", "unknown key; did you mean training.sequence_length?"),
        ("data.blend[2].share", "the recipe has no such list element"),
        ("..", "is no key"),
    ],
)
def test_a_key_that_is_not_there_is_refused(project: PencilProject, key: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        explain(project.load(), key)
    assert said in str(caught.value)


def test_differences_hold_both_values_and_where_they_stand(project: PencilProject) -> None:
    first, second = project.load(), project.load("seed=7", "training.micro_batch_size=2")
    found = differences(first, second)
    assert [(one.key, one.role, one.values, one.origins) for one in found] == [
        ("training.micro_batch_size", "placement", ("1", "2"), ("default", "--set training.micro_batch_size=2")),
        ("seed", "meaning", ("1234", "7"), ("default", "--set seed=7")),
    ]


def test_a_list_element_of_one_recipe_only_is_a_difference(project: PencilProject) -> None:
    first, second = project.load(), project.load("data.blend=[{source: a.yaml, share: 1}]")
    found = {one.key: one for one in differences(first, second)}
    assert found["data.blend[1].share"].values == ("0.25", "(not there)")
    assert found["data.blend[1].share"].origins == ("pretrain.yaml:7", "")
