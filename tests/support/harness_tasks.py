"""Tasks for the Language Model Evaluation Harness over files made here: nothing is fetched.

add_choice     which of four numbers is a sum: answers of one token each (contexts shared)
add_words      the same with answers of several tokens
add_generate   the sum, written out up to a line's end, with few-shot examples in `train`
add_prose      the likelihood of whole texts, long ones too
add            a group of the first two
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from megatron_ext.evaluate.lm_eval_model import EngineLM

Pair = tuple[EngineLM, LM]
"""Our engine and the harness's own model."""

_WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_tasks(folder: Path, *, documents: int = 12, until: tuple[str, ...] = ("\n",), new_tokens: int = 12) -> Path:
    """Writes data and task files; gives the folder that holds the latter."""
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    _write(train, [_row(7 * i + 3) for i in range(8)])
    _write(test, [_row(5 * i) for i in range(documents)])
    files = {"data_files": {"train": str(train), "test": str(test)}, "cache_dir": str(folder / "cache")}
    data = {"dataset_path": "json", "dataset_kwargs": files}
    shared: dict[str, Any] = data | {
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": "{{question}}",
        "metadata": {"version": 1.0},
    }
    choice = shared | {
        "output_type": "multiple_choice",
        "doc_to_target": "gold",
        "metric_list": _metrics("acc", "acc_norm"),
    }
    tasks = {
        "add_choice": choice | {"doc_to_choice": ["A", "B", "C", "D"]},
        "add_words": choice | {"doc_to_choice": "words"},
        "add_generate": shared
        | {
            "output_type": "generate_until",
            "doc_to_target": "answer",
            "generation_kwargs": {"until": list(until), "max_gen_toks": new_tokens, "do_sample": False},
            "metric_list": _metrics("exact_match"),
        },
        "add_prose": shared
        | {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [
                {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
                {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
            ],
        },
    }
    (folder / "tasks").mkdir()
    for name, task in tasks.items():
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | task))
    group = {
        "group": "add",
        "task": ["add_choice", "add_words"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (folder / "tasks" / "add.yaml").write_text(yaml.safe_dump(group))
    return folder / "tasks"


def _metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def _row(number: int) -> dict[str, Any]:
    first, second = number % 5, number % 4
    total = first + second
    offered = [total, (total + 1) % 10, (total + 3) % 10, (total + 7) % 10]
    turn = number % 4
    offered = offered[turn:] + offered[:turn]
    listed = " ".join(f"{letter}. {value}" for letter, value in zip("ABCD", offered, strict=True))
    steps = " ".join(f"{i} and {_WORDS[i % 10]}." for i in range(number))
    return {
        "question": f"{listed}\nWhat is {first} + {second}?",
        "words": [f"{value} is {_WORDS[value]}" for value in offered],
        "gold": offered.index(total),
        "answer": str(total),
        "text": f"{first} plus {second} makes {_WORDS[total]}. {steps}",
    }


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def both(pair: Pair, tasks: Path, name: str, **asked: Any) -> list[dict[str, Any]]:
    """What the harness finds with each of the two models."""
    found = []
    for model in pair:
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        result = simple_evaluate(model, tasks=[name], task_manager=manager, bootstrap_iters=0, **asked)
        assert result is not None
        found.append(result)
    return found
