"""Answers found in replies, and whether they are right."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from data_tools.errors import DataError, SetupError
from data_tools.math_scoring import require_installed
from data_tools.scoring import check_truth, final_answer, is_right, read_reply


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("It is 4.", None),
        ("It is \\boxed{4}.", "4"),
        ("\\boxed{4}, no, \\boxed{5}", "5"),
        ("<think>\\boxed{4}</think>It is \\boxed{5}.", "5"),
        ("<think>\\boxed{4}</think>I do not know.", None),
        ("<think>It is \\boxed{4}", None),
        ("\\boxed{3}\n</think>\n\\boxed{4}", "4"),
        ("<think>a</think>\\boxed{1}<think>b</think>\\boxed{2}", "2"),
        ("<think>a</think>\\boxed{1}<think>\\boxed{2}", None),
        ("\\boxed{5}<think>It", None),
        ("\\boxed{\\frac{1}{\\sqrt{2}}}", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\boxed{4}}", "4"),
        ("\\boxed{4", None),
        ("\\boxed{4 and \\boxed{5}", "5"),
        ("\\boxed {\n 4 \n}", "4"),
        ("\\boxed{}", None),
        ("\\boxed{1 2\n3 4}", "1 2\n3 4"),
    ],
)
def test_the_answer_is_the_last_box_outside_the_thinking(reply: str, answer: str | None) -> None:
    assert final_answer(reply) == answer


def test_a_reply_keeps_all_its_boxes_and_its_thinking_apart() -> None:
    reply = read_reply("<think>\nHm.\n</think>\n\\boxed{1} or \\boxed{2}")
    assert (reply.thinking, reply.boxed) == ("Hm.", ("1", "2"))
    assert read_reply("4").thinking is None


def test_a_line_of_the_answer_counts_only_where_no_box_is_needed() -> None:
    reply = "Answer: 3\n\nWait.\n\nAnswer: 4"
    assert final_answer(reply) is None
    assert final_answer(reply, needs_box=False) == "4"
    assert final_answer(f"{reply}\n\\boxed{{5}}", needs_box=False) == "5"


RIGHT = [
    ("exact", " Tuesday.", "tuesday"),
    ("exact", "$\\text{No}$", "No"),
    ("exact", "1 0\n0 1", "1 0 0 1"),
    ("exact", "٤٢ apples", "42 apples"),
    ("number", "1,234,567", "1234567"),
    ("number", "1{,}234", "1234"),
    ("number", "0.50", "1/2"),
    ("number", "-\\frac{3}{6}", "-0.5"),
    ("number", "\\dfrac{-3}{6}", "-1/2"),
    ("number", "5e-1", "0.5"),
    ("number", "$x = 12$", "12"),
    ("number", "−٤٢", "-42"),
    ("number", "１２", "12"),
    ("choice", "(b)", "B"),
    ("choice", "B) Paris", "B"),
    ("choice", "Option B.", "(B)"),
    ("choice", "\\text{B}", "B"),
    ("polynomial", "1 + 3x^{2}", "3*x**2 + 1"),
    ("polynomial", "x*y - 2y*x", "-x*y"),
    ("polynomial", "2i + 8", "8.0 + 2.0i"),
]
WRONG = [
    ("exact", "Tuesdays", "Tuesday"),
    ("exact", "10²", "102"),
    ("number", "10²", "102"),
    ("number", "1,23", "123"),
    ("number", "3 4", "34"),
    ("number", "12 or 13", "12"),
    ("number", "12", "120"),
    ("number", "1/0", "1"),
    ("number", "0.333", "1/3"),
    ("choice", "A cat", "A"),
    ("choice", "C", "B"),
    ("choice", "B or C", "B"),
    ("polynomial", "3*x**2 + 2", "3*x**2 + 1"),
    ("polynomial", "(3*x**2 + 1)", "3*x**2 - 1"),
    ("polynomial", "3 4", "34"),
    ("polynomial", "", "1"),
]


@pytest.mark.parametrize(("scorer", "answer", "truth"), RIGHT)
def test_an_answer_in_another_spelling_is_right(scorer: str, answer: str, truth: str) -> None:
    assert is_right(answer, truth, scorer=scorer)


@pytest.mark.parametrize(("scorer", "answer", "truth"), WRONG)
def test_another_answer_is_wrong(scorer: str, answer: str, truth: str) -> None:
    assert not is_right(answer, truth, scorer=scorer)


@pytest.mark.parametrize("scorer", ["exact", "number", "choice", "polynomial"])
def test_no_answer_is_wrong(scorer: str) -> None:
    assert not is_right(None, "b", scorer=scorer) if scorer != "number" else not is_right(None, "1", scorer=scorer)


@pytest.mark.parametrize(
    "answer", ["1e999999999", "9" * 9_999, "9**9**9**9", "x^999" * 1_900, "{" * 9_999, "1" * 10**7]
)
@pytest.mark.parametrize("scorer", ["exact", "number", "choice", "polynomial"])
def test_an_answer_made_to_hurt_is_wrong_at_once(scorer: str, answer: str) -> None:
    truth = {"number": "1", "polynomial": "x + 1"}.get(scorer, "b")
    start = time.process_time()
    assert not is_right(answer, truth, scorer=scorer)
    assert time.process_time() - start < 2


def test_reasoning_gym_scores_tasks_of_many_right_answers() -> None:
    task = {"family": "palindrome_generation", "metadata": {"letters": ["a", "b", "b", "a"]}}
    said = [is_right(answer, "abba", scorer="reasoning-gym", task=task) for answer in ("baab", "abab", None)]
    assert said == [True, False, False]


def test_a_task_whose_scorer_evaluates_answers_is_refused() -> None:
    with pytest.raises(DataError, match="'n_queens': its scorer may run an answer as code"):
        is_right("[]", "[]", scorer="reasoning-gym", task={"family": "n_queens"})


def test_a_task_whose_scorer_raises_at_the_truth_is_refused() -> None:
    task = {"family": "palindrome_generation", "metadata": {}}
    with pytest.raises(DataError, match="palindrome_generation: its scorer raises KeyError: 'letters', .*'abba'"):
        check_truth("abba", scorer="reasoning-gym", task=task)
    check_truth("abba", scorer="reasoning-gym", task=task | {"metadata": {"letters": ["a", "b", "b", "a"]}})


def test_without_math_verify_its_truths_are_refused_before_anything_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    require_installed.cache_clear()
    with pytest.raises(SetupError, match=r"scorer math-verify cannot be used: .* pip install 'megatron-ext\[rl\]'"):
        check_truth("4", scorer="math-verify")
    monkeypatch.undo()
    check_truth("4", scorer="math-verify")


@pytest.mark.parametrize(
    ("argument", "code", "said"), [("--help", 0, "MEMORY_MIB"), ("much", 2, "invalid int value: 'much'")]
)
def test_the_scoring_program_says_how_it_is_called(argument: str, code: int, said: str) -> None:
    command = [sys.executable, "-m", "data_tools.scoring_server", argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_truth_that_is_no_answer_to_its_task_is_refused_for_every_answer_would_be_right() -> None:
    task = {"family": "knights_knaves", "metadata": {}}
    with pytest.raises(DataError, match="ground truth: 'odd' is no answer to a task knights_knaves"):
        is_right("whatever", "odd", scorer="reasoning-gym", task=task)
    assert is_right("Zoey is a knave", "Zoey is a knave", scorer="reasoning-gym", task=task)
    assert not is_right("whatever", "Zoey is a knave", scorer="reasoning-gym", task=task)


def test_an_unknown_scorer_and_an_unreadable_truth_are_errors() -> None:
    with pytest.raises(DataError, match="is none of choice, exact, math-verify, number, polynomial, reasoning-gym"):
        is_right("4", "4", scorer="maths")
    with pytest.raises(DataError, match="ground truth: 'four' is nothing that the scorer number can read"):
        is_right("4", "four", scorer="number")
