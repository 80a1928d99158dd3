"""Tokens as text whose mask can be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_tools.marked_text import bracketed, coloured, runs_of
from data_tools.tokenizer import Tokenizer

MASK = np.array([False, True, True, False])


def test_text_is_cut_where_the_mask_changes(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer)
    ids = np.array(tokenizer.encode("1234"))  # a digit is a token
    assert runs_of(ids, MASK, tokenizer) == [("1", False), ("23", True), ("4", False)]


def test_no_character_is_lost_where_a_cut_divides_one(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer)
    ids = np.array(tokenizer.encode("a€b"))
    assert len(ids) == 5  # the three bytes of the sign are a token each
    runs = runs_of(ids, np.array([False, False, True, True, True]), tokenizer)
    assert runs == [("a", False), ("€b", True)]


def test_a_replacement_character_of_the_text_itself_stays(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer)
    ids = np.array(tokenizer.encode("a\ufffdb"))
    assert runs_of(ids, np.array([False] * 4 + [True]), tokenizer) == [("a\ufffd", False), ("b", True)]


def test_without_a_tokenizer_the_ids_are_the_text() -> None:
    assert runs_of(np.array([7, 8, 9, 10]), MASK, None) == [("7 ", False), ("8 9 ", True), ("10 ", False)]


def test_without_a_mask_all_is_trained_on_and_nothing_is_marked(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer)
    runs = runs_of(np.array(tokenizer.encode("12")), None, tokenizer)
    assert bracketed(runs) == coloured(runs).plain == "12"
    assert coloured(runs).spans == []


def test_brackets_stand_around_what_is_trained_on() -> None:
    assert bracketed([("1 + 1?", False), ("2", True), ("!", False)]) == "1 + 1?⟦2⟧!"
    assert bracketed([("nothing", False)]) == "nothing"


def test_colours_hold_the_same_text_without_brackets() -> None:
    text = coloured([("1 + 1?", False), ("[2]", True)])
    assert text.plain == "1 + 1?[2]"
    assert [(span.start, span.end, span.style) for span in text.spans] == [(0, 6, "dim"), (6, 9, "bold green")]


def test_no_tokens_give_no_runs(tiny_tokenizer: Path) -> None:
    assert runs_of(np.zeros(0, np.int64), None, Tokenizer.load(tiny_tokenizer)) == []
    assert runs_of(np.zeros(0, np.int64), None, None) == []
