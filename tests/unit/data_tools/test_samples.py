"""Sample sources: honest, in their schemas, the same for a seed."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_tools.adapters import adapter_named
from data_tools.documents import texts
from data_tools.errors import DataError, UsageError
from data_tools.progress import NoProgress
from data_tools.samples.base import DOCUMENT_CHARACTERS, base_rows, documents_of
from data_tools.samples.command import make_samples
from data_tools.samples.ldq import ldq_rows
from data_tools.samples.ldq_families import DOMAIN_OF, FAMILIES_BY_DOMAIN, REASONING
from data_tools.samples.rows import Tally
from data_tools.samples.shq import WrongAnswer, shq_rows, verify
from data_tools.samples.tasks import family_seed, new_tasks
from data_tools.samples.traces import TRACE_WRITERS
from data_tools.samples.traces.trace import Trace
from data_tools.samples.write import SOURCES, Request, WrittenSample, write_sample
from data_tools.split import split_of

SCALE = 0.02
SMALL = Request(scale=SCALE)
EVERY = ",".join(SOURCES)
SPLIT = [name for name, source in SOURCES.items() if source.is_split]


def written(name: str, out: Path, *, seed: int = 0) -> WrittenSample:
    return write_sample(SOURCES[name], out, Request(seed=seed, scale=SCALE), progress=NoProgress())


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sources, small."""
    out = tmp_path_factory.mktemp("raw")
    make_samples(out, SMALL, only=EVERY)
    return out


@pytest.fixture(scope="module")
def some_shq() -> list[dict[str, Any]]:
    return [row for family in TRACE_WRITERS for row in itertools.islice(shq_rows(family, 0, Tally()), 5)]


@pytest.fixture(scope="module")
def some_ldq() -> list[dict[str, Any]]:
    return [row for family in DOMAIN_OF for row in itertools.islice(ldq_rows(family, 0, Tally()), 3)]


def test_each_source_is_a_card_and_its_files(samples: Path) -> None:
    assert sorted(path.name for path in samples.iterdir()) == sorted(
        [f"{name}{suffix}" for name in SOURCES for suffix in (".jsonl", ".card.json")]
        + [f"{name}.validation.jsonl" for name in SPLIT]
    )


@pytest.mark.parametrize("name", list(SOURCES))
def test_the_card_tells_what_the_files_hold(samples: Path, name: str) -> None:
    card = json.loads((samples / f"{name}.card.json").read_bytes())
    files = sorted(card["files"])
    rows = [row for file in files for row in rows_of(samples / file)]
    for counts in ("families", "domains", "styles"):
        assert card["rows"] == len(rows) == sum(card[counts].values())
    assert card["text_bytes"] == sum(len(SOURCES[name].text(row).encode()) for row in rows)
    assert sum(share["rows"] for share in card["shares"].values()) == pytest.approx(1, abs=0.002)
    for file in files:
        content = (samples / file).read_bytes()
        assert card["files"][file]["sha256"] == hashlib.sha256(content).hexdigest()
        assert card["files"][file]["bytes"] == len(content)
    assert (card["seed"], card["size"], card["scale"], card["name"]) == (0, "small", SCALE, name)
    assert card["licence"]
    assert card["stands_for"]


@pytest.mark.parametrize("name", ["base", "ldq", "shq", "mini_base", "mini_ldq", "mini_shq"])
def test_the_text_of_a_row_is_what_its_adapter_reads(samples: Path, name: str) -> None:
    source, file = SOURCES[name], samples / f"{name}.jsonl"
    assert list(texts([file], adapter_named("text"))) == [source.text(row) for row in rows_of(file)]


@pytest.mark.parametrize("name", ["ldq", "shq", "eval", "rl"])
def test_a_sample_has_as_many_rows_of_each_family_as_asked_for(samples: Path, name: str) -> None:
    families = json.loads((samples / f"{name}.card.json").read_bytes())["families"]
    assert families == dict.fromkeys(SOURCES[name].parts, SMALL.num_rows(SOURCES[name]))


def test_the_card_of_ldq_states_the_share_of_bare_answers(samples: Path) -> None:
    card = json.loads((samples / "ldq.card.json").read_bytes())
    rows = [row for file in card["files"] for row in rows_of(samples / file)]
    bare = [row for row in rows if not row["has_reasoning"]]
    assert card["shares"]["answer only"]["rows"] == round(len(bare) / len(rows), 3)
    text_bytes = [sum(len(row["text"].encode()) for row in some) for some in (bare, rows)]
    assert card["shares"]["answer only"]["text"] == round(text_bytes[0] / text_bytes[1], 3)
    assert 0.5 < card["shares"]["answer only"]["rows"] < 0.9


@pytest.mark.parametrize("name", SPLIT)
def test_rows_have_ids_of_their_own_which_decide_the_split(samples: Path, name: str) -> None:
    training = [row["id"] for row in rows_of(samples / f"{name}.jsonl")]
    held_out = [row["id"] for row in rows_of(samples / f"{name}.validation.jsonl")]
    assert len({*training, *held_out}) == len(training) + len(held_out)
    assert {split_of(row_id) for row_id in training} == {"train"}
    assert {split_of(row_id) for row_id in held_out} <= {"validation"}


def test_other_processes_with_another_hash_seed_make_the_same_bytes(samples: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_tools", "sample", "--out", tmp_path / "raw", "--only", EVERY]
    subprocess.run(
        [*command, "--scale", str(SCALE), "--workers", "2"],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        check=True,
        capture_output=True,
    )
    for path in samples.iterdir():
        assert (tmp_path / "raw" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", list(SOURCES))
def test_another_seed_makes_other_rows(samples: Path, tmp_path: Path, name: str) -> None:
    written(name, tmp_path, seed=1)
    ids = [{row["id"] for row in rows_of(folder / f"{name}.jsonl")} for folder in (samples, tmp_path)]
    assert len(ids[0] & ids[1]) < 0.3 * len(ids[0])


def test_a_sample_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    first = written("shq", tmp_path)
    again = written("shq", tmp_path)
    assert (first.was_there, again.was_there) == (False, True)
    assert again.card == first.card


def test_another_sample_is_not_overwritten(tmp_path: Path) -> None:
    written("shq", tmp_path)
    before = (tmp_path / "shq.jsonl").read_bytes()
    with pytest.raises(DataError, match=r"shq\.card\.json: holds another sample: seed: it has 0, asked for 1"):
        written("shq", tmp_path, seed=1)
    (tmp_path / "shq.card.json").unlink()
    with pytest.raises(DataError, match=r"shq\.jsonl: holds something else and has no card"):
        written("shq", tmp_path, seed=1)
    assert (tmp_path / "shq.jsonl").read_bytes() == before


def test_a_sample_whose_card_was_not_reached_is_completed(tmp_path: Path) -> None:
    first = written("shq", tmp_path)
    (tmp_path / "shq.card.json").unlink()
    assert written("shq", tmp_path).card == first.card


def test_a_sample_that_was_edited_is_not_called_there(tmp_path: Path) -> None:
    written("shq", tmp_path)
    with (tmp_path / "shq.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match=r"shq\.jsonl: was changed after it was made"):
        written("shq", tmp_path)


def test_wrong_names_and_scales_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--only: 'lmq' is none of {','.join(sorted(SOURCES))}"):
        make_samples(tmp_path, SMALL, only="base,lmq")
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="is not above 0"):
            make_samples(tmp_path, Request(scale=scale))
    with pytest.raises(UsageError, match="--workers: 0 is below 1"):
        make_samples(tmp_path, SMALL, workers=0)


def test_shq_rows_are_in_the_schema_of_openthoughts3(some_shq: list[dict[str, Any]]) -> None:
    for row in some_shq:
        assert list(row) == ["id", "conversations", "domain", "difficulty", "source"]
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]
        assert row["domain"] == ("general" if row["source"].endswith(("logic", "knaves")) else "math")
        assert type(row["difficulty"]) is int
        assert 1 <= row["difficulty"] <= 10


def test_families_come_in_turn(tmp_path: Path) -> None:
    write_sample(SOURCES["eval"], tmp_path, Request(scale=0.25), progress=NoProgress())
    families = [row["meta_data"]["family"] for row in rows_of(tmp_path / "eval.jsonl")]
    assert families == 2 * sorted(SOURCES["eval"].parts)


def test_shq_has_families_of_arithmetic_algebra_and_logic() -> None:
    assert len(TRACE_WRITERS) == 12
    assert {"products", "linear_systems", "knights_knaves"} <= set(TRACE_WRITERS)


def test_a_shq_answer_is_a_trace_and_one_boxed_answer(some_shq: list[dict[str, Any]]) -> None:
    for row in some_shq:
        value = row["conversations"][1]["value"]
        assert value.startswith("<think>\n")
        before, after = value.split("\n</think>\n\n")
        assert "\\boxed" not in before
        assert after.startswith("The answer is \\boxed{")
        assert len(before.splitlines()) >= 8


def test_a_wrong_trace_is_an_error_and_not_dropped() -> None:
    task = next(new_tasks("products", seed=family_seed(0, "shq", "products"), use="train", tally=Tally()))
    right = next(shq_rows("products", 0, Tally()))
    verify(right, task)
    for boxes, said in (("\\boxed{1}", "a score of"), ("none", "0 boxed"), ("\\boxed{1} \\boxed{2}", "2 boxed")):
        wrong = copy.deepcopy(right)
        wrong["conversations"][1]["value"] = f"<think>\n</think>\n\n{boxes}"
        with pytest.raises(WrongAnswer, match=said):
            verify(wrong, task)


def test_a_row_with_a_wrong_trace_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACE_WRITERS, "gcd", lambda question, facts: Trace(lines=("I guess.",), answer="0"))
    with pytest.raises(WrongAnswer, match=r"shq-gcd-[0-9a-f]{16}: the task's scorer gives '0' a score of"):
        next(shq_rows("gcd", 0, Tally()))


def test_an_answer_inside_the_trace_does_not_count() -> None:
    task = next(new_tasks("products", seed=0, use="train", tally=Tally()))
    row = {"id": "x", "conversations": [{}, {"value": f"<think>\\boxed{{{task.answer}}}</think>"}]}
    with pytest.raises(WrongAnswer, match="0 boxed answers after the trace"):
        verify(row, task)


def test_ldq_has_many_families_and_none_of_shq() -> None:
    families = [family for members in FAMILIES_BY_DOMAIN.values() for family in members]
    assert len(families) == len(set(families)) == 51
    assert not set(families) & set(TRACE_WRITERS)


def test_ldq_rows_have_text_domain_and_category(some_ldq: list[dict[str, Any]]) -> None:
    for row in some_ldq:
        assert list(row) == ["id", "text", "domain", "category", "has_reasoning"]
        assert row["category"] in FAMILIES_BY_DOMAIN[row["domain"]]
        assert "\n\nAnswer: " in row["text"]
    assert {row["category"] for row in some_ldq} == {
        name for members in FAMILIES_BY_DOMAIN.values() for name in members
    }


def test_the_families_with_reasoning_show_it(some_ldq: list[dict[str, Any]]) -> None:
    assert {row["category"] for row in some_ldq if row["has_reasoning"]} == set(REASONING)


def test_ldq_asks_no_question_twice() -> None:
    tally = Tally()
    rows = list(itertools.islice(ldq_rows("coin_flip", 0, tally), 100))
    assert len({row["text"] for row in rows}) == 100
    assert tally.left_out["question made before"] > 0


def test_a_family_without_new_questions_ends_and_says_so() -> None:
    tally = Tally()
    assert 100 < len(list(ldq_rows("coin_flip", 0, tally))) < 300
    assert tally.left_out["family coin_flip has no new question"] == 1


def test_base_documents_are_of_bounded_length() -> None:
    rows = list(itertools.islice(base_rows("library", 0, Tally()), 60))
    assert {row["family"] for row in rows} == {"topics", "code"}
    assert max(len(row["text"]) for row in rows) <= DOCUMENT_CHARACTERS


def test_a_long_text_is_cut_at_empty_lines_and_a_long_paragraph_at_line_ends() -> None:
    half, lines = "a" * 3_500, "b" * 2_999 + "\n"
    assert documents_of("short\n\ntext\n") == ["short\n\ntext"]
    assert documents_of(f"{half}\n\n{half}") == [half, half]
    assert documents_of(lines * 3) == [f"{lines}{lines}".strip(), lines.strip()]


def test_the_documents_of_a_module_hold_all_its_lines() -> None:
    source = Path(json.__file__).read_text()
    joined = "\n".join(documents_of(source))
    assert [line for line in joined.splitlines() if line] == [line for line in source.splitlines() if line]


def test_the_schema_of_the_card_names_the_keys_of_the_rows(samples: Path) -> None:
    for source in SOURCES.values():
        assert list(rows_of(samples / f"{source.name}.jsonl")[0]) == list(source.schema)
