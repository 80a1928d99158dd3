"""Sample sources: honest, in their schemas, the same for a seed."""

from __future__ import annotations

import argparse
import ast
import copy
import enum
import hashlib
import inspect
import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data_tools.adapters import adapter
from data_tools.documents import texts
from data_tools.errors import DataError, UsageError
from data_tools.progress import NoProgress
from data_tools.samples.base import BASE, DOCUMENT_CHARACTERS, base_rows, split_module
from data_tools.samples.command import make_samples
from data_tools.samples.ldq import LDQ, ldq_rows
from data_tools.samples.ldq_families import FAMILIES_BY_DOMAIN
from data_tools.samples.rows import Tally, ask, family_seed, reasoning_gym
from data_tools.samples.shq import FAMILIES, WrongAnswer, shq_rows, verify
from data_tools.samples.traces import TRACE_WRITERS, Trace
from data_tools.samples.write import SOURCES, WrittenSample, write_sample
from data_tools.split import split_of

SCALE = 0.01


def written(name: str, out: Path, *, seed: int = 0) -> WrittenSample:
    return write_sample(SOURCES[name], out, seed=seed, scale=SCALE, progress=NoProgress())


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sources, small."""
    out = tmp_path_factory.mktemp("raw")
    make_samples(out, seed=0, only=None, scale=SCALE)
    return out


@pytest.fixture(scope="module")
def some_shq() -> list[dict[str, Any]]:
    return list(itertools.islice(shq_rows(0, Tally()), 40))


@pytest.fixture(scope="module")
def some_ldq() -> list[dict[str, Any]]:
    return list(itertools.islice(ldq_rows(0, Tally()), 120))


def test_each_source_is_two_files_and_a_card(samples: Path) -> None:
    assert sorted(path.name for path in samples.iterdir()) == sorted(
        f"{name}{suffix}" for name in ("base", "ldq", "shq") for suffix in (".jsonl", ".validation.jsonl", ".card.json")
    )


@pytest.mark.parametrize("name", ["base", "ldq", "shq"])
def test_the_card_tells_what_the_files_hold(samples: Path, name: str) -> None:
    card = json.loads((samples / f"{name}.card.json").read_bytes())
    files = [f"{name}.jsonl", f"{name}.validation.jsonl"]
    assert card["rows"] == sum(len(rows_of(samples / file)) for file in files) == sum(card["families"].values())
    written = texts([samples / file for file in files], adapter("text"))
    assert card["text_bytes"] == sum(len(text.encode()) for text in written)
    assert card["text_bytes"] >= SOURCES[name].default_bytes * SCALE
    for file in files:
        content = (samples / file).read_bytes()
        assert card["files"][file]["sha256"] == hashlib.sha256(content).hexdigest()
        assert card["files"][file]["bytes"] == len(content)
    assert (card["seed"], card["scale"], card["name"]) == (0, SCALE, name)
    assert card["licence"]
    assert card["stands_for"]


@pytest.mark.parametrize("name", ["base", "ldq", "shq"])
def test_rows_have_ids_of_their_own_which_decide_the_split(samples: Path, name: str) -> None:
    training = [row["id"] for row in rows_of(samples / f"{name}.jsonl")]
    held_out = [row["id"] for row in rows_of(samples / f"{name}.validation.jsonl")]
    assert len({*training, *held_out}) == len(training) + len(held_out)
    assert {split_of(row_id) for row_id in training} == {"train"}
    assert {split_of(row_id) for row_id in held_out} <= {"validation"}


def test_another_process_with_another_hash_seed_makes_the_same_bytes(samples: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "data_tools", "sample", "--out", tmp_path / "raw", "--scale", str(SCALE)],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        check=True,
        capture_output=True,
    )
    for path in samples.iterdir():
        assert (tmp_path / "raw" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", ["base", "ldq", "shq"])
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
    with pytest.raises(UsageError, match="--only: 'lmq' is none of base,ldq,shq"):
        make_samples(tmp_path, seed=0, only="base,lmq", scale=1.0)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="is not above 0"):
            make_samples(tmp_path, seed=0, only=None, scale=scale)


def test_shq_rows_are_in_the_schema_of_openthoughts3(some_shq: list[dict[str, Any]]) -> None:
    for row in some_shq:
        assert list(row) == ["id", "conversations", "domain", "difficulty", "source"]
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]
        assert row["domain"] == "math"
        assert type(row["difficulty"]) is int
        assert 1 <= row["difficulty"] <= 10


def test_shq_takes_its_four_families_in_turn(some_shq: list[dict[str, Any]]) -> None:
    families = [row["source"].removeprefix("reasoning-gym/") for row in some_shq]
    assert families == ["chain_sum", "gcd", "products", "simple_equations"] * 10


def test_a_shq_answer_is_a_trace_and_one_boxed_answer(some_shq: list[dict[str, Any]]) -> None:
    for row in some_shq:
        value = row["conversations"][1]["value"]
        assert value.startswith("<think>\n")
        before, after = value.split("\n</think>\n\n")
        assert "\\boxed" not in before
        assert after.startswith("The answer is \\boxed{")
        assert len(before.splitlines()) >= 8


def test_a_wrong_trace_is_an_error_and_not_dropped() -> None:
    scorer, task = next(ask(reasoning_gym(), "products", family_seed(0, "shq", "products"), FAMILIES["products"]))
    right = next(row for row in shq_rows(0, Tally()) if row["source"].endswith("products"))
    verify(right, scorer, task)
    for boxes, said in (("\\boxed{1}", "a score of"), ("none", "0 boxed"), ("\\boxed{1} \\boxed{2}", "2 boxed")):
        wrong = copy.deepcopy(right)
        wrong["conversations"][1]["value"] = f"<think>\n</think>\n\n{boxes}"
        with pytest.raises(WrongAnswer, match=said):
            verify(wrong, scorer, task)


def test_a_row_with_a_wrong_trace_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACE_WRITERS, "gcd", lambda question: Trace(lines=("I guess.",), answer="0"))
    with pytest.raises(WrongAnswer, match=r"shq-gcd-[0-9a-f]{16}: the task's scorer gives '0' a score of"):
        list(itertools.islice(shq_rows(0, Tally()), 4))


def test_an_answer_inside_the_trace_does_not_count() -> None:
    scorer, task = next(ask(reasoning_gym(), "products", family_seed(0, "shq", "products"), FAMILIES["products"]))
    row = {"id": "x", "conversations": [{}, {"value": f"<think>\\boxed{{{task['answer']}}}</think>"}]}
    with pytest.raises(WrongAnswer, match="0 boxed answers after the trace"):
        verify(row, scorer, task)


def test_ldq_has_many_families_and_none_of_shq() -> None:
    families = [family for members in FAMILIES_BY_DOMAIN.values() for family in members]
    assert len(families) == len(set(families)) == 52
    assert not set(families) & set(FAMILIES)


def test_ldq_rows_have_text_domain_and_category(some_ldq: list[dict[str, Any]]) -> None:
    for row in some_ldq:
        assert list(row) == ["id", "text", "domain", "category", "has_reasoning"]
        assert row["category"] in FAMILIES_BY_DOMAIN[row["domain"]]
        assert "\n\nAnswer: " in row["text"]
    assert {row["category"] for row in some_ldq} == {
        name for members in FAMILIES_BY_DOMAIN.values() for name in members
    }


def test_ldq_is_of_mixed_quality(some_ldq: list[dict[str, Any]]) -> None:
    reasoned = sum(row["has_reasoning"] for row in some_ldq)
    assert 0.1 * len(some_ldq) < reasoned < 0.5 * len(some_ldq)


def test_ldq_asks_no_question_twice() -> None:
    tally = Tally()
    rows = list(itertools.islice(ldq_rows(0, tally), 1500))
    assert len({row["text"] for row in rows}) == 1500
    assert tally.left_out["question made before"] > 0


def test_base_documents_are_of_bounded_length() -> None:
    rows = list(itertools.islice(base_rows(0, Tally()), 60))
    assert {row["family"] for row in rows} == {"topics", "docs", "code"}
    assert max(len(row["text"]) for row in rows) <= 3 * DOCUMENT_CHARACTERS


MODULE = '''"""About shapes."""
import math

class Square:
    """Four equal sides."""

    @property
    def area(self):
        """Side times side."""
        return self.side ** 2

    def nothing(self): "says little"

class Empty(Exception):
    """Nothing is here."""
'''


def test_docstrings_of_a_module_stand_under_their_signatures() -> None:
    docs, _ = split_module("shapes", MODULE)
    assert docs == [
        "shapes\n\nAbout shapes.\n\n",
        "class shapes.Square\n\n    Four equal sides.\n\n",
        "shapes.Square.area(self)\n\n    Side times side.\n\n",
        "shapes.Square.nothing(self)\n\n    says little\n\n",
        "class shapes.Empty\n\n    Nothing is here.\n\n",
    ]


def test_code_of_a_module_is_the_source_without_docstrings() -> None:
    _, code = split_module("shapes", MODULE)
    assert (
        "".join(code)
        == """import math

class Square:

    @property
    def area(self):
        return self.side ** 2

    def nothing(self): "says little"

class Empty(Exception):
    ...
"""
    )


@pytest.mark.parametrize("module", [argparse, enum, textwrap])
def test_code_without_docstrings_is_the_same_program(module: ModuleType) -> None:
    source = inspect.getsource(module)
    _, code = split_module(module.__name__, source)
    expected = ast.parse(source)
    for node in ast.walk(expected):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Expr(ast.Constant(...))]
    assert ast.dump(ast.parse("".join(code))) == ast.dump(expected)
    assert not [piece for piece in code if piece.rstrip().rpartition("\n")[2].lstrip().startswith("@")]


def test_the_schema_of_the_card_names_the_keys_of_the_rows(samples: Path) -> None:
    for source in (BASE, LDQ, SOURCES["shq"]):
        assert list(rows_of(samples / f"{source.name}.jsonl")[0]) == list(source.schema)
