"""The held-out split depends on the id of a document alone."""

from __future__ import annotations

import pytest

from data_tools.split import VALIDATION_PERCENT, split_of


def test_the_split_of_known_ids_never_changes() -> None:
    held_out = [number for number in range(200) if split_of(f"doc-{number}") == "validation"]
    assert held_out == [59, 80, 178]


def test_about_two_percent_are_held_out() -> None:
    held_out = sum(split_of(f"row-{number}") == "validation" for number in range(20_000))
    assert VALIDATION_PERCENT == 2
    assert 360 <= held_out <= 440  # 400 +- 2 standard deviations of a binomial(20,000, 0.02)


def test_a_document_without_an_id_is_refused() -> None:
    with pytest.raises(ValueError, match="give every row an id"):
        split_of("")
