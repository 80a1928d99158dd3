"""Prompts with verifiable answers: apart from what is trained on, and from each other."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_tools.adapters import adapter_named
from data_tools.documents import texts
from data_tools.overlap import Corpus, find_overlap
from data_tools.samples.command import make_samples
from data_tools.samples.last_digit import DIGIT, DIGIT_EVAL, FORM
from data_tools.samples.prompts import EVAL, RL, SCORER_OF, UNSEEN, accepts
from data_tools.samples.rows import Tally, content_id
from data_tools.samples.tasks import USES, new_tasks, use_of
from data_tools.samples.write import Request

SCALE = 0.25


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for file in folder.glob(f"{name}*.jsonl") for line in file.read_text().splitlines()]


def plain(text: str) -> str:
    return " ".join(text.casefold().split())


def questions_of(folder: Path, name: str) -> set[str]:
    """Questions, of ldq whole texts, normalised here and not by the code under test."""
    return {plain(row["text"] if name == "ldq" else question_of(name, row)) for row in rows_of(folder, name)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """All sets, by seed."""
    folders = {seed: tmp_path_factory.mktemp(f"seed{seed}") for seed in (0, 1)}
    for seed, folder in folders.items():
        make_samples(folder, Request(seed=seed, scale=SCALE), only="ldq,shq,eval,rl")
    return folders


@pytest.mark.parametrize(("first", "second"), [("shq", "eval"), ("shq", "rl"), ("rl", "eval")])
@pytest.mark.parametrize("seeds", [(0, 0), (0, 1), (1, 0)])
def test_no_question_is_in_two_sets_whatever_the_seeds(
    made: dict[int, Path], first: str, second: str, seeds: tuple[int, int]
) -> None:
    left, right = questions_of(made[seeds[0]], first), questions_of(made[seeds[1]], second)
    assert min(len(left), len(right)) >= 96
    assert not left & right


@pytest.mark.parametrize(("name", "use"), [("ldq", "train"), ("shq", "train"), ("rl", "rl"), ("eval", "eval")])
def test_every_question_of_a_file_is_one_for_its_use(made: dict[int, Path], name: str, use: str) -> None:
    """Families have so many questions that two files with the same use would seldom share one."""
    rows = [row for folder in made.values() for row in rows_of(folder, name)]
    questions = [question_of(name, row) for row in rows]
    assert len(questions) >= 192
    assert {use_of(question) for question in questions} == {use}


def question_of(name: str, row: dict[str, Any]) -> str:
    """The question of a row; of a text of ldq the start whose hash is in the row's id."""
    if name in ("eval", "rl"):
        return str(row["meta_data"]["question"])
    if name == "shq":
        return str(row["conversations"][0]["value"].rpartition("\n\n")[0])
    ends = [place.start() for place in re.finditer("\n\n", row["text"])]
    starts = [row["text"][:end] for end in ends]
    return next(start for start in starts if content_id("ldq", row["category"], start) == row["id"])


def test_no_question_of_a_family_with_few_of_them_has_two_uses() -> None:
    asked = {
        use: {task.question for task in new_tasks("coin_flip", seed=seed, use=use, tally=Tally())}
        for seed, use in enumerate(("train", "rl", "eval"))
    }
    assert {use: len(questions) > 5 for use, questions in asked.items()} == dict.fromkeys(asked, True)
    assert not asked["train"] & asked["rl"]
    assert not (asked["train"] | asked["rl"]) & asked["eval"]


@pytest.mark.parametrize("name", ["eval", "rl"])
@pytest.mark.parametrize("seeds", [(0, 0), (0, 1), (1, 0)])
def test_no_text_of_ldq_starts_with_the_question_of_a_prompt(
    made: dict[int, Path], name: str, seeds: tuple[int, int]
) -> None:
    texts = "\x00".join(["", *sorted(questions_of(made[seeds[0]], "ldq"))])
    assert not [question for question in questions_of(made[seeds[1]], name) if f"\x00{question} " in texts]


def test_use_hangs_on_the_words_of_a_question_alone() -> None:
    assert use_of(" What  is\n1 + 1? ") == use_of("what IS 1 + 1?")
    uses = [use_of(f"What is {number} + 1?") for number in range(1600)]
    assert {use: round(uses.count(use) / 1600, 1) for use in set(USES)} == {"eval": 0.1, "rl": 0.2, "train": 0.7}


def test_a_task_for_one_use_is_never_made_for_another() -> None:
    for use in ("train", "rl", "eval"):
        tally = Tally()
        tasks = itertools.islice(new_tasks("lcm", seed=0, use=use, tally=tally), 20)
        assert {use_of(task.question) for task in tasks} == {use}
        assert tally.left_out[f"question for another use than {use}"] > 0


def test_evaluation_sets_share_no_document_with_what_is_trained_on(made: dict[int, Path], tmp_path: Path) -> None:
    corpora = []
    for name in ("eval", "ldq", "shq", "rl"):
        path = tmp_path / f"{name}.jsonl"
        questions = sorted(questions_of(made[0], name))
        path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in questions))
        corpora.append(Corpus(name, (([path], adapter_named("text")),)))
    for corpus in corpora[1:]:
        overlap = find_overlap(corpora[0], corpus)
        assert [int(side.duplicates.sum()) for side in overlap.sides] == [0, 0], corpus.name


@pytest.mark.parametrize("name", ["eval", "rl"])
def test_a_prompt_is_read_as_one_of_nemotron_crossthink(made: dict[int, Path], name: str) -> None:
    file, rows = made[0] / f"{name}.jsonl", rows_of(made[0], name)
    read = list(texts([file], adapter_named("nemotron-crossthink")))
    assert read == [row["prompt"][0]["content"] for row in rows]
    assert len({row["id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("name", ["eval", "rl"])
def test_the_true_answer_of_a_prompt_is_right_and_another_is_not(made: dict[int, Path], name: str) -> None:
    rows = rows_of(made[0], name)
    for row in rows:
        truth = row["reward_model"]["ground_truth"]
        assert accepts(row, f"<think>\nSo {truth}.\n</think>\n\\boxed{{{truth}}}"), row
        assert not accepts(row, f"The answer is {truth}."), row
        assert not accepts(row, f"<think>\n\\boxed{{{truth}}}"), row
        assert not accepts(row, "\\boxed{-98765}"), row
    assert {row["meta_data"]["scorer"] for row in rows} == {"exact", "number", "polynomial", "reasoning-gym"}


def test_roles_of_knights_and_knaves_are_right_in_any_order() -> None:
    rows = RL.make("knights_knaves", 0, Tally())
    row = json.loads(json.dumps(next(rows)))
    first, second, third = row["reward_model"]["ground_truth"].rstrip(".").replace(" and ", " ").split(", ")
    assert accepts(row, f"\\boxed{{{third}, {first}, {second}}}")


def test_evaluation_alone_asks_families_that_no_other_set_has() -> None:
    assert set(EVAL.parts) - set(RL.parts) == set(UNSEEN)
    assert set(EVAL.parts) == set(SCORER_OF)


def test_an_unseen_family_says_that_nothing_trained_on_it(made: dict[int, Path]) -> None:
    trained_in = {row["meta_data"]["family"]: row["meta_data"]["trained_in"] for row in rows_of(made[0], "eval")}
    assert (trained_in["maze"], trained_in["gcd"], trained_in["dice"]) == ("none", "shq", "ldq")


def test_a_prompt_of_digit_has_the_last_digit_of_its_number_as_answer() -> None:
    rows = list(itertools.islice(DIGIT.make("last_digit", 0, Tally()), 200))
    for row in rows:
        content = row["prompt"][0]["content"]
        assert re.fullmatch(r"Last digit: [1-9]\d{3}", content)
        assert row["reward_model"]["ground_truth"] == content[-1]
    assert len({row["id"] for row in rows}) == 200


def test_conversations_of_form_are_right_as_often_as_chance_and_say_which_are() -> None:
    rows = list(itertools.islice(FORM.make("last_digit", 0, Tally()), 1_000))
    for row in rows:
        asked, said = (turn["content"] for turn in row["messages"])
        assert re.fullmatch(r"\\boxed\{\d\}", said)
        assert row["is_right"] is (said == f"\\boxed{{{asked[-1]}}}")
    assert 60 < sum(row["is_right"] for row in rows) < 140  # 100 expected, deviation 9.5


def test_numbers_that_are_rewarded_tested_and_shown_are_apart() -> None:
    prompts, tested = (
        {row["prompt"][0]["content"] for row in source.make("last_digit", 0, Tally())} for source in (DIGIT, DIGIT_EVAL)
    )
    shown = {row["messages"][0]["content"] for row in FORM.make("last_digit", 1, Tally())}
    assert (len(prompts) > 1_000, len(tested) > 400, len(shown) > 5_000) == (True, True, True)
    assert not prompts & shown
    assert not tested & (prompts | shown)
