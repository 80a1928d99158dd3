"""The layer pattern is read exactly, and a wrong one is pointed at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.recipe.layer_pattern import LayerPattern, parse_pattern


def test_a_pattern_gives_its_layers_and_its_cuts() -> None:
    assert parse_pattern("M-|M*-|M") == LayerPattern("M-M*-M", cuts=(2, 5))


def test_layers_are_counted_by_kind_without_the_cuts() -> None:
    pattern = parse_pattern("M-M*|-M-")
    assert (pattern.num_layers, pattern.count("M"), pattern.count("*"), pattern.count("-")) == (7, 3, 1, 3)


def test_segments_are_the_layers_of_each_pipeline_stage() -> None:
    assert parse_pattern("M-|M*-|M").segments == ("M-", "M*-", "M")


@given(st.lists(st.text("M*-", min_size=1, max_size=5), min_size=1, max_size=5))
def test_a_pattern_is_written_as_it_was_read(segments: list[str]) -> None:
    text = "|".join(segments)
    assert str(parse_pattern(text)) == text


def test_a_caret_stands_under_a_symbol_without_a_layer() -> None:
    with pytest.raises(ValueError, match="'Q' is no layer symbol") as caught:
        parse_pattern("M-Q*")
    assert str(caught.value).splitlines()[1:] == ["    M-Q*", "      ^"]


@pytest.mark.parametrize(("pattern", "caret"), [("|M", 0), ("M||M", 2), ("M-|", 2)])
def test_a_pipeline_stage_without_layers_is_pointed_at(pattern: str, caret: int) -> None:
    with pytest.raises(ValueError, match="has no layer") as caught:
        parse_pattern(pattern)
    assert str(caught.value).splitlines()[2] == "    " + " " * caret + "^"


def test_a_pattern_without_layers_is_refused_with_the_alphabet() -> None:
    with pytest.raises(ValueError, match=r"no layers; use M Mamba-2, \* attention, - MLP, \| pipeline cut"):
        parse_pattern("")
