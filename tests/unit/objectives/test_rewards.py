"""What replies are worth, and that no reply can hurt the run that scores it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from data_tools.errors import DataError, RecipeError, SetupError
from data_tools.scoring_process import ScoringProcess
from megatron_ext.objectives.rewards import (
    RewardOptions,
    RewardParts,
    RewardPool,
    ScorerError,
    compose,
    question_of,
)

BOMB = "9^{9^{9^{9}}}"


def prompt(truth: str, scorer: str = "number", task: Any = None) -> dict[str, Any]:
    return {
        "id": f"p-{truth}",
        "prompt": [{"role": "user", "content": "?"}],
        "reward_model": {"style": "rule", "ground_truth": truth},
        "meta_data": {"scorer": scorer, "task": task},
    }


BROKEN = prompt("ab", "reasoning-gym", {"family": "palindrome_generation", "metadata": {"letters": ["a", 3]}})
"""Its scorer cannot put its letters in order, which only answers that are palindromes bring to light."""
RAISED = "TypeError: '<' not supported between instances of 'int' and 'str'"


def reply(answer: str) -> str:
    return f"<think>Hm.</think>It is \\boxed{{{answer}}}."


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(RewardOptions(), num_workers=1, time_limit_s=20.0) as pool:
        yield pool


@pytest.mark.parametrize(
    ("text", "accuracy", "form"),
    [
        (reply("4"), 1, 1),
        (reply("5"), 0, 1),
        ("It is \\boxed{4}.", 1, 0),
        ("It is 4.", 0, 0),
        ("", 0, 0),
        ("<think>\\boxed{4}</think>It is 4.", 0, 0),
        ("<think>\\boxed{3}</think>It is \\boxed{4}.", 1, 1),
        ("<think>Hm.</think>\\boxed{3}, no, \\boxed{4}.", 1, 0),
        ("<think>Hm.</think>\\boxed{\\boxed{4}}", 1, 1),
        ("<think>Hm.</think>\\boxed{\\boxed{3}\\boxed{4}}", 1, 0),
        ("<think>Hm.\\boxed{4}", 0, 0),
        ("<think></think>\\boxed{4}", 1, 0),
        ("Ah. <think>Hm.</think>\\boxed{4}", 1, 0),
        ("<think>a</think><think>b</think>\\boxed{4}", 1, 0),
        (reply("４"), 1, 1),
        (reply("٤"), 1, 1),
        (reply("²"), 0, 1),
        (reply("4") + "\\boxed{", 1, 1),
        (reply("4\x00"), 0, 1),
        (reply("\ud800"), 0, 1),  # half of a character
    ],
)
def test_a_reply_is_right_and_well_formed_or_not(pool: RewardPool, text: str, accuracy: float, form: float) -> None:
    found = pool.submit(prompt("4"), text).result(60)
    parts = {"accuracy": accuracy, "format": form, "accuracy-and-format": accuracy * form}
    assert found == RewardParts(accuracy * form, parts, "scored")


@pytest.mark.parametrize(
    "text",
    ["\\boxed{" * 300_000, "\\boxed{" * 200_000 + "}" * 200_000, "9" * 5_000_000, reply("1" * 3_000_000), "{" * 10**6,
     "<think>" * 300_000, "\\boxed{1}" * 200_000, "</think>" * 300_000, reply("\\frac{1}{" * 90_000)],
    ids=["open", "nested", "digits", "long", "braces", "thoughts", "boxes", "ends", "fractions"],
)  # fmt: skip
def test_megabytes_are_wrong_and_neither_time_out_nor_crash(pool: RewardPool, text: str) -> None:
    found = pool.submit(prompt("4"), text).result(120)
    assert (found.parts["accuracy"], found.outcome) == (0, "scored")


def test_multiple_choice_goes_by_label(pool: RewardPool) -> None:
    texts = [reply("B"), reply("(b)"), reply("B) Paris"), reply("C"), reply("Paris")]
    assert [pool.submit(prompt("B", "choice"), text).result(60).total for text in texts] == [1, 1, 1, 0, 0]


def test_mathematics_is_compared_and_words_are_not_products(pool: RewardPool) -> None:
    pairs = [
        ("2\\sqrt{2}", "\\sqrt{8}", 1),
        ("(x+1)^2", "$x^2+2x+1$", 1),
        ("\\frac{1}{3}", "1/3", 1),
        ("\\frac{1}{3}", "0.34", 0),
        ("１２", "12", 1),
        ("Paris", "Paris", 1),
        ("spari", "Paris", 0),
        ("__import__('os').abort()", "5", 0),
    ]
    found = [pool.submit(prompt(truth, "math-verify"), reply(answer)).result(60) for answer, truth, _ in pairs]
    assert [parts.total for parts in found] == [expected for _, _, expected in pairs]
    assert {parts.outcome for parts in found} == {"scored"}


def test_an_answer_that_does_not_end_is_ended_and_counted_and_the_next_is_scored() -> None:
    with RewardPool(RewardOptions(), num_workers=1, time_limit_s=1.0) as pool:
        pool.submit(prompt("2", "math-verify"), reply("2")).result(60)  # libraries are loaded
        start = time.monotonic()
        bomb = pool.submit(prompt("5", "math-verify"), reply(BOMB))
        after = pool.submit(prompt("4"), reply("4"))
        assert bomb.result(60) == RewardParts(0.0, {"accuracy": 0, "format": 1, "accuracy-and-format": 0}, "timed-out")
        assert 1.0 <= time.monotonic() - start < 30
        assert after.result(60).total == 1


def test_a_worker_that_dies_on_an_answer_makes_it_wrong_and_counted() -> None:
    process = ScoringProcess()
    question = {"text": reply("2"), "truth": "5", "scorer": "math-verify", "task": None}
    assert process.ask(question, limit_s=60) == {"format": True, "accuracy": False}
    before = sum(psutil.Process(process.pid).cpu_times()[:2])

    def kill_at_work() -> None:
        while sum(psutil.Process(process.pid).cpu_times()[:2]) < before + 0.2:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_at_work)
    killer.start()
    found = process.ask(question | {"text": reply(BOMB)}, limit_s=60)
    killer.join()
    assert found == {"format": True, "outcome": "crashed"}
    assert not process.is_alive()
    process.end()


def test_a_worker_that_was_killed_while_idle_is_replaced() -> None:
    with RewardPool(RewardOptions(), num_workers=1, time_limit_s=20.0) as pool:
        worker = pool._idle.get()
        os.kill(worker.pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(worker.pid)], timeout=10)
        pool._idle.put(worker)
        assert pool.submit(prompt("4"), reply("4")).result(60).total == 1


def test_a_worker_that_cannot_look_at_answers_is_no_wrong_answer() -> None:
    process = ScoringProcess()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(SetupError, match="answers with number ended with code -9 before it looked at one"):
        process.ask({"text": "", "truth": "4", "scorer": "number", "task": None}, limit_s=1)


def test_a_scorer_that_raises_is_an_error_with_the_prompt_and_the_scorer() -> None:
    with RewardPool(RewardOptions(), num_workers=1, time_limit_s=20.0) as pool:
        futures = [pool.submit(row, reply("abba")) for row in (BROKEN, prompt("abba", "exact"))]
        with pytest.raises(ScorerError, match=f"prompt p-ab: the scorer reasoning-gym raised {RAISED}"):
            futures[0].result(60)
        assert futures[1].result(60).total == 1


def test_a_scorer_that_raises_is_counted_where_that_is_asked() -> None:
    with RewardPool(RewardOptions(on_error="count"), num_workers=1, time_limit_s=20.0) as pool:
        found = pool.submit(BROKEN, reply("abba")).result(60)
    assert (found.total, found.outcome, found.detail) == (0.0, "failed", RAISED)


def test_rewards_do_not_hang_on_the_number_of_workers() -> None:
    questions = [(prompt(str(n % 3), "number"), reply(str(n % 4))) for n in range(24)]
    found = []
    for num_workers in (1, 3):
        with RewardPool(RewardOptions(), num_workers=num_workers, time_limit_s=20.0) as pool:
            futures = [pool.submit(*question) for question in questions]
            found.append([future.result(60) for future in futures])
    assert found[0] == found[1]
    assert [parts.total for parts in found[0]] == [float(n % 3 == n % 4) for n in range(24)]


def test_the_workers_end_with_the_pool() -> None:
    pool = RewardPool(RewardOptions(), num_workers=2, time_limit_s=1.0)
    workers = [pool._idle.get() for _ in range(2)]
    for worker in workers:
        pool._idle.put(worker)
    pool.close()
    assert not any(psutil.pid_exists(worker.pid) for worker in workers)


def test_a_worker_loads_neither_torch_nor_a_library_that_nobody_asks_for() -> None:
    code = "import sys, data_tools.scoring_server; print({'torch', 'sympy', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_parts_are_kept_and_added_by_weight() -> None:
    options = RewardOptions(weights={"accuracy": 0.75, "format": 0.5})
    kept = {"accuracy": 1.0, "format": 1.0, "accuracy-and-format": 1.0}
    assert compose(accuracy=1, is_well_formed=1, options=options) == (1.25, kept)
    assert compose(accuracy=0, is_well_formed=1, options=options)[0] == 0.5


@pytest.mark.parametrize("weights", [{}, {"beauty": 1.0}, {"accuracy": -1.0}, {"accuracy": 0.0}])
def test_weights_that_make_no_sense_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="^rewards: "):
        RewardOptions(weights=weights)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (prompt(""), "reward_model.ground_truth: '' is no answer"),
        (prompt("4") | {"reward_model": None}, "reward_model.ground_truth: None is no answer"),
        (prompt("4") | {"meta_data": {}}, "meta_data.scorer: None names no scorer"),
    ],
)
def test_a_prompt_that_does_not_say_what_is_right_is_refused(row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what):
        question_of(row)
