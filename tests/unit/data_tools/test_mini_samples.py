"""The miniature study's samples: right where they say so, wrong as often as they say, worked out step by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from data_tools.samples import mini, mini_traces
from data_tools.samples.mini import WRONG_PERCENT, base_rows, ldq_rows, prompt_rows, shq_rows
from data_tools.samples.mini_tasks import EASY, HARD, MINI_FAMILIES, UNSEEN
from data_tools.samples.mini_traces import MiniWorking, working
from data_tools.samples.prompts import accepts
from data_tools.samples.rows import Row, Tally
from data_tools.samples.shq import WrongAnswer
from data_tools.samples.write import DEMO_SOURCES, SOURCES


def some(rows: Any, number: int) -> list[Row]:
    return list(itertools.islice(rows, number))


def reply(row: Row) -> str:
    return str(row["conversations"][-1]["value"])


@pytest.mark.parametrize(
    ("family", "question", "long", "short", "answer"),
    [
        ("mini_total", "total: c 2 a 5 f 6", "c 2 is 2, a 5 is 7, f 6 is 13", "2, 7, 13", "13"),
        ("mini_turned", "turn: c 5 a 4 f 6", "c 5 is 5, a 4 is 2, f 6 is 1", "5, 2, 1", "1"),
        ("mini_gaps", "gaps: c 2 a 6 f 1", "c 2 is 2, a 6 is 4, f 1 is 3", "2, 4, 3", "3"),
        ("mini_kept", "keep over 2: c 3 a 2 f 6", "c 3 yes, a 2 no, f 6 yes", "yes, no, yes", "c f"),
        ("mini_kept", "keep over 4: c 3 a 2", "c 3 no, a 2 no", "no, no", "none"),
        (
            "mini_row",
            "row: c 5 a 0 f 3",
            "0 a, 1 none, 2 none, 3 f, 4 none, 5 c, 6 none",
            "a, none, none, f, none, c, none",
            "a f c",
        ),
        ("mini_ways", "ways: b to c, c to a, a to b. 2 from c", "c to a, a to b", "a, b", "b"),
    ],
)
def test_a_working_is_what_a_pencil_would_write(family: str, question: str, long: str, short: str, answer: str) -> None:
    steps = working(family, question)
    assert (steps.long, steps.short, steps.answer) == (long, short, answer)


@pytest.mark.parametrize("family", sorted(MINI_FAMILIES))
def test_a_family_has_thousands_of_questions(family: str) -> None:
    make, _ = MINI_FAMILIES[family]
    assert len({make(Random(seed))[0] for seed in range(6_000)}) > 3_000


@pytest.mark.parametrize("family", sorted(HARD))
def test_a_working_comes_to_the_stored_answer(family: str) -> None:
    make, _ = HARD[family]
    for seed in range(300):
        question, answer = make(Random(seed))
        assert working(family, question).answer == answer


def test_a_working_that_comes_to_another_answer_stops_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: Any = dict(mini_traces._WORKINGS) | {"mini_total": lambda question: ([("c 1 is 1", "1")], "1")}
    monkeypatch.setattr(mini_traces, "_WORKINGS", wrong)
    with pytest.raises(WrongAnswer, match="worked out '1', stored answer"):
        next(shq_rows("mini_total", 0, Tally()))


def test_every_reply_of_shq_thinks_and_is_right() -> None:
    for family in HARD:
        for row in some(shq_rows(family, 0, Tally()), 20):
            question = row["conversations"][0]["value"]
            assert reply(row) == mini.thought(working(family, question).long, working(family, question).answer)


def test_as_many_replies_of_ldq_are_wrong_as_its_card_says() -> None:
    rows = some(ldq_rows("mini_repeat", 0, Tally()), 2_000)
    wrong = [row for row in rows if reply(row) != mini.boxed(_repeated(row))]
    assert len(wrong) / len(rows) == pytest.approx(WRONG_PERCENT / 100, abs=0.02)
    assert [row["id"] for row in rows if row["style"].endswith("wrong")] == [row["id"] for row in wrong]


def _repeated(row: Row) -> str:
    return str(row["conversations"][0]["value"]).removeprefix("repeat: ")


def test_ldq_has_short_workings_of_hard_questions_alone() -> None:
    easy, hard = (some(ldq_rows(family, 0, Tally()), 400) for family in ("mini_last", "mini_row"))
    assert not any("<think>" in reply(row) for row in easy)
    assert sum("<think>" in reply(row) for row in hard) / 400 == pytest.approx(0.5, abs=0.08)


def test_base_asks_half_of_the_easy_families_and_answers_rightly() -> None:
    rows = some(base_rows("mini_repeat", 0, Tally()), 200)
    assert [reply(row) for row in rows] == [mini.boxed(_repeated(row)) for row in rows]
    asked = {*SOURCES["mini_base"].parts} & {*MINI_FAMILIES}
    assert asked < {*EASY}
    assert len(asked) == 8


@pytest.mark.parametrize(
    ("family", "word", "result"),
    [
        ("mini_facts_sum", "and", lambda a, b: a + b),
        ("mini_facts_turn", "turn", lambda a, b: (a + b) % 7),
        ("mini_facts_gap", "gap", lambda a, b: abs(a - b)),
    ],
)
def test_a_list_of_facts_is_right(family: str, word: str, result: Callable[[int, int], int]) -> None:
    for row in some(base_rows(family, 0, Tally()), 20):
        for fact in reply(row).rstrip(".").split(". "):
            left, said = fact.split(" is ")
            a, b = left.split(f" {word} ")
            assert result(int(a), int(b)) == int(said)


def test_no_set_trains_on_an_unseen_family() -> None:
    trained = [name for name in SOURCES if SOURCES[name].is_split and name.startswith("mini_")]
    assert not any({*SOURCES[name].parts} & {*UNSEEN} for name in (*trained, "mini_rl"))
    assert {*SOURCES["mini_new"].parts} == {*UNSEEN}


def test_every_prompt_accepts_its_own_answer_in_a_box_with_spaces() -> None:
    for family in MINI_FAMILIES:
        for row in some(prompt_rows(family, 0, Tally(), name="mini_new", use="eval"), 10):
            assert accepts(row, mini.boxed(row["reward_model"]["ground_truth"]))


def test_no_question_of_a_test_is_trained_on() -> None:
    tested = some(prompt_rows("mini_repeat", 0, Tally(), name="mini_general", use="eval"), 100)
    trained = some(ldq_rows("mini_repeat", 0, Tally()), 2_000)
    asked = {row["meta_data"]["question"] for row in tested}
    assert not asked & {row["conversations"][0]["value"] for row in trained}


def test_the_miniature_is_no_part_of_the_demo() -> None:
    assert [source.name for source in DEMO_SOURCES] == [
        "base",
        "ldq",
        "shq",
        "eval",
        "rl",
        "digit",
        "digit_eval",
        "form",
    ]


def test_a_working_holds_its_steps_apart() -> None:
    assert MiniWorking((("a to b", "b"), ("b to c", "c")), "c").short == "b, c"
