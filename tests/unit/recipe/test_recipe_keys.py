"""Key paths are written as people write them, and the schema answers for each."""

from __future__ import annotations

import pytest

from megatron_ext.recipe.keys import field_at, key_name, leaf_keys, parse_key, role_of, section_at, type_name
from megatron_ext.recipe.schema import BlendEntry, Recipe


def test_a_key_is_read_back_as_written() -> None:
    path = ("data", "blend", 1, "share")
    assert key_name(path) == "data.blend[1].share"
    assert parse_key("data.blend[1].share") == path


@pytest.mark.parametrize("text", ["", ".lr", "optimizer.", "data.blend[x]", "[0]", "a..b"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no key"):
        parse_key(text)


def test_the_section_of_a_list_element_is_that_of_the_list() -> None:
    assert section_at(Recipe, ("data", "blend", 3)) is BlendEntry
    assert section_at(Recipe, ("data", "blend")) is None


def test_a_field_is_found_by_its_path_and_a_wrong_path_finds_none() -> None:
    found = field_at(Recipe, ("data", "blend", 0, "share"))
    assert found is not None
    assert found.description == "Share of the processed tokens, in (0, 1]."
    assert field_at(Recipe, ("data", "share")) is None


def test_every_value_of_a_recipe_is_a_leaf_once() -> None:
    leaves = [key_name(leaf) for leaf in leaf_keys(Recipe)]
    assert len(leaves) == len(set(leaves))
    assert {"stage", "model.hidden_size", "data.blend[0].share", "schedule.decay_tokens"} <= set(leaves)
    assert "data.blend" not in leaves


@pytest.mark.parametrize(
    ("key", "role"),
    [
        ("optimizer.lr", "meaning"),
        ("model.name", "placement"),
        ("parallel.sequence_parallel", "placement"),
        ("training.micro_batch_size", "placement"),
        ("training.sequence_length", "meaning"),
        ("data.blend[0].source", "meaning (by content)"),
        ("data.blend[0].share", "meaning"),
    ],
)
def test_a_key_knows_whether_it_is_part_of_the_meaning(key: str, role: str) -> None:
    assert role_of(parse_key(key)) == role


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("precision", "one of: bf16, fp32"),
        ("training.max_steps", "a count such as 8192, 1.5M or 20B, or null, greater than 0"),
        ("optimizer.beta1", "a number such as 0.1 or 1e-4, at least 0, less than 1"),
        ("parallel.sequence_parallel", "true or false"),
        ("data.blend", "a list of sections, or null"),
        ("logging.wandb_project", "text, or null"),
    ],
)
def test_a_type_is_said_in_words(key: str, words: str) -> None:
    field = field_at(Recipe, parse_key(key))
    assert field is not None
    assert type_name(field) == words
