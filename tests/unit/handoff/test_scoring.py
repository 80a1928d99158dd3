"""Rewards inside another engine are those of an rl stage here."""

from __future__ import annotations

import pytest

from data_tools.prompts import PromptRow
from megatron_ext.handoff.scoring import encode_question, make_compute_score, make_pool, score
from tests.support.rl_project import prompt_line

REWARDS = {"accuracy": 0, "format": 0.5, "accuracy_and_format": 1, "timeout_s": 20, "on_error": "stop"}


def question(opening: str = "") -> str:
    record = prompt_line(3) | {"meta_data": {"scorer": "number"}}
    return encode_question(PromptRow("0" * 32, "math", "", record, (1,), opening=opening))


def test_replies_are_scored_in_order_with_the_recipes_weights() -> None:
    replies = ["<think>3 + 1</think>It is \\boxed{4}.", "It is \\boxed{4}.", "<think>3</think>\\boxed{5}"]
    with make_pool(REWARDS) as pool:
        found = score(pool, replies, [question()] * 3)
    assert [one.total for one in found] == [1.5, 0.0, 0.5]


@pytest.mark.parametrize(("opening", "form"), [("<think>\n", 1.0), ("", 0.0)])
def test_what_the_template_opens_is_part_of_the_answer(opening: str, form: float) -> None:
    compute_score = make_compute_score(**REWARDS)
    found = compute_score("sums", "3 + 1</think>It is \\boxed{4}.", "4", {"question": question(opening)})
    assert (found["acc"], found["format"], found["scored"]) == (1.0, form, 1.0)
    assert found["score"] == 1.5 * form
