"""Items of harness tasks as their file has them: what a model is asked and what is right, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.evaluate.lm_eval_contamination import text_of, write_items
from megatron_ext.evaluate.lm_eval_tasks import load_tasks
from megatron_ext.evaluate.options import Options
from megatron_ext.evaluate.tasks import read_request
from tests.support.harness_tasks import write_tasks

SHARED = {"dataset_path": "json", "test_split": "test", "output_type": "multiple_choice", "doc_to_choice": ["x", "y"]}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("harness"), documents=2)


def written(tasks: Path, name: str, folder: Path) -> dict[str, dict[str, str]]:
    """The texts of each file, by ids."""
    files = write_items(read_request(f"lm-eval:{name}", Options()), load_tasks(name, tasks, asked_as=name), folder)
    lines = {file.name: map(json.loads, file.read_text().splitlines()) for file in files}
    return {name: {line["id"]: line["text"] for line in of_file} for name, of_file in lines.items()}


def test_an_item_is_the_question_and_its_right_answer(tasks: Path, tmp_path: Path) -> None:
    assert written(tasks, "add_choice", tmp_path) == {
        "add_choice.jsonl": {
            "0": "A. 0 B. 1 C. 3 D. 7\nWhat is 0 + 0? A",
            "1": "A. 2 B. 4 C. 8 D. 1\nWhat is 0 + 1? D",
        }
    }
    assert written(tasks, "add_generate", tmp_path)["add_generate.jsonl"]["1"].endswith("What is 0 + 1? 1")
    assert written(tasks, "add_prose", tmp_path)["add_prose.jsonl"]["0"] == "0 plus 0 makes none."


def test_items_of_a_group_stand_in_one_file_under_the_ids_that_results_have(tasks: Path, tmp_path: Path) -> None:
    (texts,) = written(tasks, "add", tmp_path).values()
    assert list(texts) == ["add_choice/0", "add_choice/1", "add_words/0", "add_words/1"]
    assert texts["add_words/1"].endswith("What is 0 + 1? 1 is one")


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ({"doc_to_text": "{{q}}", "doc_to_target": "gold"}, "Why? y"),
        ({"doc_to_text": "{{q}}", "doc_to_target": "several"}, "Why? y"),
        ({"doc_to_text": "{{q}}", "doc_to_target": "none"}, "Why?"),
        ({"doc_to_text": "{{q}}", "doc_to_target": "unknown"}, "Why? -1"),
        ({"doc_to_text": "gold", "doc_to_target": "{{q}}"}, "y Why?"),  # as winogrande: choices stand before the text
    ],
    ids=["number", "several", "none", "withheld", "choices-first"],
)
def test_answers_of_any_form_are_read_as_the_harness_reads_them(
    tmp_path: Path, definition: dict[str, Any], expected: str
) -> None:
    row = {"q": "Why?", "gold": 1, "several": [1, 0], "none": [], "unknown": -1}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    files = {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    task = SHARED | {"task": "own", "dataset_kwargs": files} | definition
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(task))
    loaded = load_tasks("own", tmp_path, asked_as=expected).tasks["own"]
    assert text_of(loaded, loaded.eval_docs[0]) == expected
