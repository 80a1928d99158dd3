"""Benchmarks that other programs judge: the commands for them, and what they write, read back."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import DataError, UsageError
from megatron_ext.evaluate.external_task import check, commands, read_result, taken_up
from megatron_ext.evaluate.options import Options
from megatron_ext.evaluate.tasks import TaskRequest, read_request
from tests.support.evaluation_results import results_of


def request(task: str, **entry: Any) -> TaskRequest:
    return read_request(task, Options(temperature=0.6, samples=4), name=entry.pop("name", None), extra=entry)


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def programs(*passed: str) -> list[dict[str, str]]:
    """Programs for one problem: b passes the base tests, p the added ones too."""
    status = {"-": ("fail", "fail"), "b": ("pass", "fail"), "p": ("pass", "pass")}
    return [dict(zip(("base_status", "plus_status"), status[one], strict=True)) for one in passed]


def test_evalplus_is_the_mean_over_problems_of_programs_that_pass(tmp_path: Path) -> None:
    file = tmp_path / "evalplus" / "humaneval" / "model_vllm_temp_0.6_eval_results.json"
    write(file, {"eval": {"HumanEval/0": programs("p", "p", "b", "-"), "HumanEval/1": programs("-", "-", "b", "-")}})
    base = read_result(request("evalplus:humaneval", metric="base"), tmp_path)
    plus = read_result(request("evalplus:humaneval", metric="plus"), tmp_path)
    assert base is not None
    assert plus is not None
    assert (base.metric().value, plus.metric().value) == ((3 / 4 + 1 / 4) / 2, (2 / 4 + 0) / 2)
    assert (base.headline, base.items) == ("avg@4", 2)


def test_evalplus_of_another_number_of_programs_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "evalplus" / "mbpp" / "m_eval_results.json", {"eval": {"Mbpp/1": programs("p")}})
    with pytest.raises(DataError, match=r"\[1\] programs a problem, 4 were asked for"):
        read_result(request("evalplus:mbpp"), tmp_path)


def test_nemo_skills_percent_becomes_a_ratio(tmp_path: Path) -> None:
    numbers = {"pass@1[avg-of-4]": {"num_entries": 30, "symbolic_correct": 41.25}, "pass@4": {"symbolic_correct": 60}}
    write(tmp_path / "nemo-skills" / "eval-results" / "aime24" / "metrics.json", {"aime24": numbers})
    found = read_result(request("nemo-skills:aime24"), tmp_path)
    assert found is not None
    assert (found.metric().value, found.items) == (0.4125, 30)


def test_a_number_brought_in_a_file_counts(tmp_path: Path) -> None:
    write(tmp_path / "mbpp.json", {"value": 0.41, "items": 500})
    found = read_result(request("external:mbpp"), tmp_path)
    assert found is not None
    assert (found.metric().value, found.items) == (0.41, 500)


def test_a_file_of_another_form_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "mbpp.json", {"accuracy": 0.41})
    with pytest.raises(DataError, match=r"mbpp\.json: not of the form that external writes \(KeyError\('value'\)\)"):
        read_result(request("external:mbpp"), tmp_path)


def test_what_is_not_there_yet_has_no_result(tmp_path: Path) -> None:
    assert read_result(request("nemo-skills:aime24"), tmp_path) is None


def test_the_commands_export_generate_and_judge_where_the_results_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "a b"  # a blank must not divide a path
    lines = commands([request("evalplus:humaneval", metric="base")], Path("step_4"), folder).splitlines()
    assert lines[0] == "set -eu"
    assert lines[1].endswith(f"megatron-ext export step_4 --to '{folder}/model'")
    generate, judge = (shlex.split(line) for line in lines[2:])
    assert generate[:3] == ["evalplus.codegen", "--model", f"{folder}/model"]
    assert generate[-4:] == ["--n_samples", "4", "--temperature", "0.6"]
    name = f"{folder}/model".strip("./").replace("/", "--")
    assert judge[-1] == f"{folder}/evalplus/humaneval/{name}_vllm_temp_0.6.jsonl"


def test_benchmarks_of_one_way_of_sampling_share_a_command(tmp_path: Path) -> None:
    asked = [
        request("nemo-skills:aime24", samples=16),
        request("nemo-skills:gsm8k"),
        request("nemo-skills:mmlu", top_p=1.0),
    ]
    lines = commands(asked, Path("step_4"), tmp_path).splitlines()
    assert lines[2] == "ns prepare_data aime24 gsm8k mmlu"
    assert len(lines) == 4
    assert "--benchmarks=aime24:16,gsm8k:4,mmlu:4" in lines[3]
    assert "++inference.temperature=0.6" in lines[3]


def test_results_that_came_later_are_taken_up_in_the_order_asked(tmp_path: Path) -> None:
    asked = (request("external:a"), request("external:b"), request("external:c"))
    write(tmp_path / "external" / "b.json", {"value": 0.5, "items": 2})
    first = read_result(asked[1], tmp_path / "external")
    assert first is not None
    results = results_of(first)
    question = Asked(asked)
    assert taken_up(results, question, tmp_path) is results
    write(tmp_path / "external" / "a.json", {"value": 0.25, "items": 4})
    assert [task.name for task in taken_up(results, question, tmp_path).tasks] == ["a", "b"]


class Asked:
    """What `taken_up` reads of a question; the class itself imports torch."""

    def __init__(self, tasks: tuple[TaskRequest, ...]) -> None:
        self.tasks, self.aggregate = tasks, None


@pytest.mark.parametrize(
    ("task", "entry", "said"),
    [
        ("evalplus:apps", {}, "task evalplus:apps: EvalPlus has humaneval and mbpp"),
        (
            "nemo-skills:aime24",
            {"shots": 4},
            "task nemo-skills:aime24: shots: no such key; there are metric, arguments",
        ),
    ],
)
def test_what_no_program_knows_is_refused(task: str, entry: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check([request(task, **entry)], Path("step_4"))
