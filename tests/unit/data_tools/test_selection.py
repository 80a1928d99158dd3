"""Filters by length and rules for answers."""

from __future__ import annotations

import numpy as np
import pytest

from data_tools.errors import UsageError
from data_tools.records import Document
from data_tools.selection import NO_ANSWER, AnswerRule, Where


def select(where: str, *, text_tokens: int, answer_tokens: int) -> tuple[bool, bool]:
    """Whether a document of these lengths is taken, and whether its length is unknown."""
    selected = Where.parse(where).select(text_tokens=np.array([text_tokens]), answer_tokens=np.array([answer_tokens]))
    return bool(selected.taken[0]), bool(selected.unknown[0])


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ("answer_tokens > 2", True),
        ("answer_tokens > 3", False),
        ("answer_tokens >= 3", True),
        ("answer_tokens < 3", False),
        ("answer_tokens <= 3", True),
        ("answer_tokens == 3", True),
        ("answer_tokens != 3", False),
        ("text_tokens==5", True),
        ("answer_tokens > 2 and text_tokens > 4", True),
        ("answer_tokens > 2 and text_tokens > 5", False),
        ("answer_tokens < 4,096", True),
        ("answer_tokens < 4_096", True),
    ],
)
def test_a_document_of_five_tokens_and_an_answer_of_three(where: str, taken: bool) -> None:
    assert select(where, text_tokens=5, answer_tokens=3) == (taken, False)


def test_an_unknown_answer_is_neither_taken_nor_left_out() -> None:
    for where in ("answer_tokens > 4096", "answer_tokens < 4096", "text_tokens > 9 and answer_tokens > 4096"):
        assert select(where, text_tokens=2, answer_tokens=NO_ANSWER) == (False, True)
    assert select("text_tokens == 2", text_tokens=2, answer_tokens=NO_ANSWER) == (True, False)


def test_two_spellings_of_one_filter_are_equal_and_write_alike() -> None:
    one, other = (
        Where.parse("answer_tokens>4_096 and text_tokens<9"),
        Where.parse(" answer_tokens > 4096  and text_tokens < 9 "),
    )
    assert one == other
    assert str(one) == str(other) == "answer_tokens > 4096 and text_tokens < 9"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("answer_tokens", "'answer_tokens' is not of the form FIELD > NUMBER"),
        ("answer_tokens > 4k", "'answer_tokens > 4k' is not of the form"),
        ("answer_tokens > -1", "is not of the form"),
        ("answer_tokens > 1 or text_tokens > 2", "is not of the form"),
        ("answer_tokens > 1 and", "'' is not of the form"),
        ("", "'' is not of the form"),
        ("__import__('os') > 1", "is not of the form"),
        ("tokens > 1", "no field 'tokens'; there are: answer_tokens, text_tokens"),
    ],
)
def test_anything_else_is_no_filter(where: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Where.parse(where)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "text", "answer"),
    [
        ("after: output: ", "input: a output: b output: c", "b output: c"),
        (r"after:\n\n(?=<think>)", "q\n\n<think>t</think>a", "<think>t</think>a"),
        ("after:Answer:", "no such word", None),
    ],
)
def test_a_rule_takes_what_follows_the_first_match(rule: str, text: str, answer: str | None) -> None:
    assert AnswerRule.parse(rule).applied(Document("a", text)) == Document("a", text, answer=answer)


def test_a_rule_leaves_an_answer_that_is_known() -> None:
    assert AnswerRule.parse("after:q").applied(Document("a", "q a b", answer="b")).answer == "b"


@pytest.mark.parametrize("rule", ["Answer:", "after:", "before:x", "after:("])
def test_anything_else_is_no_rule(rule: str) -> None:
    with pytest.raises(UsageError, match="--answer-rule: "):
        AnswerRule.parse(rule)
