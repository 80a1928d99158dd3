"""Tasks of the harness through the command: what people read is what the harness finds on the export.

Tolerances as in tests/parity/test_lm_eval_vs_hf.py, which holds the engine itself to harder cases.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from data_tools.chat_template_files import SHIPPED_TEMPLATE
from megatron_ext.__main__ import main
from megatron_ext.convert.export import export_checkpoint
from megatron_ext.evaluate.kept_items import read_items
from megatron_ext.evaluate.lm_eval_tasks import load_tasks
from megatron_ext.evaluate.results import Results, read_results
from megatron_ext.rollout.cli import find_checkpoint
from tests.support.distributed import run_distributed
from tests.support.harness_tasks import write_tasks
from tests.support.toy_project import Run, ToyProject

LIMIT = 5
MAX_LENGTH = 512
"""Tokens of a text at most: no question with its examples is cut."""
ASKED = ("lm-eval:add", "lm-eval:add_generate")


@pytest.fixture(scope="module")
def run(toy_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    copied = toy_run.copied(tmp_path_factory.mktemp("lm-eval") / "runs")
    template = find_checkpoint(copied.stage_folder) / "tokenizer" / "chat_template.jinja"
    template.write_bytes(SHIPPED_TEMPLATE.read_bytes())
    return copied


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("harness"))


@pytest.fixture(scope="module")
def hf(run: Run, tmp_path_factory: pytest.TempPathFactory) -> HFLM:
    """The harness's own model of the exported checkpoint."""
    folder = tmp_path_factory.mktemp("export") / "toy"
    export_checkpoint(find_checkpoint(run.stage_folder), folder, say=lambda _: None)
    torch.set_num_threads(1)
    return HFLM(str(folder), device="cpu", dtype="float32", batch_size=4, max_length=MAX_LENGTH)


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own() -> None:
    load_tasks.cache_clear()  # task objects keep the shots of the command before


def command(run: Run, tasks: Path, name: str, *asked: str, sets: tuple[str, ...] = ()) -> list[str]:
    options = [part for one in (f"limit={LIMIT}", f"max_length={MAX_LENGTH}", *sets) for part in ("--set", one)]
    where = ["--include-path", str(tasks), "--name", name]
    return ["evaluate", str(run.stage_folder), "--tasks", *asked, *where, *options]


def evaluate(run: Run, tasks: Path, name: str, *asked: str, sets: tuple[str, ...] = ()) -> Results:
    assert main(command(run, tasks, name, *asked, sets=sets)) == 0
    return read_results(run.stage_folder / "evaluations" / name)


def harness(hf: HFLM, tasks: Path, *names: str, **asked: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(hf, tasks=list(names), task_manager=manager, limit=LIMIT, **asked)
    assert found is not None
    return found


def numbers(results: Results) -> dict[tuple[str, str], tuple[float, int]]:
    return {(task.name, metric.name): (metric.value, metric.n) for task in results.tasks for metric in task.metrics}


@pytest.mark.slow
def test_the_command_finds_what_the_harness_finds_on_the_export(
    run: Run, tasks: Path, hf: HFLM, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluate(run, tasks, "whole", *ASKED, sets=("num_fewshot=2",))
    theirs = harness(hf, tasks, "add", "add_generate", num_fewshot=2)
    group, generate = theirs["results"]["add"], theirs["results"]["add_generate"]
    found = numbers(results)
    assert set(found) == {("add", "acc"), ("add_generate", "exact_match")}
    assert found["add", "acc"] == (pytest.approx(group["acc,none"]), 2 * LIMIT)
    assert found["add_generate", "exact_match"] == (pytest.approx(generate["exact_match,none"]), LIMIT)
    assert [task.headline for task in results.tasks] == ["acc", "exact_match"]
    assert [task.items for task in results.tasks] == [2 * LIMIT, LIMIT]
    assert results.tasks[0].details["num_fewshot"] == {"add_choice": 2, "add_words": 2}
    assert all(metric.interval is not None for task in results.tasks for metric in task.metrics)

    lines = list(read_items(run.stage_folder / "evaluations" / "whole"))
    written = {line["item"]: line for line in lines if line["task"] == "add_generate"}
    for sample in theirs["samples"]["add_generate"]:
        line = written[str(sample["doc_id"])]
        assert line["prompt"] == sample["arguments"][0][0]
        assert line["answers"] == sample["resps"]
        assert line["score"] == sample["exact_match"]
    assert sorted(line["item"] for line in lines if line["task"] == "add") == sorted(
        f"{name}/{number}" for name in ("add_choice", "add_words") for number in range(LIMIT)
    )

    capsys.readouterr()
    load_tasks.cache_clear()
    evaluate(run, tasks, "whole", *ASKED, sets=("num_fewshot=2",))
    assert "finished before" in capsys.readouterr().err
    assert main(["evaluate", "--show", str(run.stage_folder / "evaluations" / "whole"), "--items", "1"]) == 0
    assert "What is" in capsys.readouterr().out


@pytest.mark.slow
def test_chats_are_asked_as_the_harness_asks_the_export(run: Run, tasks: Path, hf: HFLM) -> None:
    asked = ("lm-eval:add_choice", "lm-eval:add_generate")
    results = evaluate(run, tasks, "chat", *asked, sets=("chat=true", "num_fewshot=2"))
    theirs = harness(
        hf, tasks, "add_choice", "add_generate", num_fewshot=2, apply_chat_template=True, fewshot_as_multiturn=True
    )
    for task in ("add_choice", "add_generate"):
        lines = {
            line["item"]: line for line in read_items(run.stage_folder / "evaluations" / "chat") if line["task"] == task
        }
        assert len(lines) == LIMIT
        for sample in theirs["samples"][task]:
            line = lines[str(sample["doc_id"])]
            assert line["prompt"] == sample["arguments"][0][0]
            assert line["prompt"].count("<|im_start|>user") == 3  # two examples and the question
            assert flat(line["answers"]) == pytest.approx(flat(sample["resps"]), abs=2e-4)
    found = numbers(results)
    assert found["add_choice", "acc"][0] == pytest.approx(theirs["results"]["add_choice"]["acc,none"])
    assert found["add_generate", "exact_match"][0] == theirs["results"]["add_generate"]["exact_match,none"]


def flat(answers: Any) -> list[Any]:
    """Of nested lists and tuples, the numbers, truths and texts."""
    if isinstance(answers, list | tuple):
        return [value for one in answers for value in flat(one)]
    return [answers]


def evaluate_on_this_rank(arguments: list[str]) -> int:
    return main(arguments)


@pytest.mark.slow
def test_two_ranks_give_the_same_results_and_lines(run: Run, tasks: Path) -> None:
    alone = evaluate(run, tasks, "alone", "lm-eval:add_choice", "lm-eval:add_generate")
    arguments = command(run, tasks, "ranks", "lm-eval:add_choice", "lm-eval:add_generate")
    assert run_distributed(evaluate_on_this_rank, 2, arguments, timeout_s=180) == [0, 0]
    folder = run.stage_folder / "evaluations"
    together = read_results(folder / "ranks")
    assert numbers(together) == numbers(alone)
    assert [task.data_id for task in together.tasks] == [task.data_id for task in alone.tasks]
    keys = ("task", "item", "prompt", "score")
    one, two = ([[line[key] for key in keys] for line in read_items(folder / name)] for name in ("alone", "ranks"))
    assert one == two
    assert len(one) == 2 * LIMIT


@pytest.mark.slow
def test_a_finished_task_is_kept_where_a_later_one_fails(run: Run, tmp_path: Path) -> None:
    folder = run.stage_folder / "evaluations" / "failing"
    broken = write_tasks(tmp_path)
    definition = broken / "add_prose.yaml"
    definition.write_text(definition.read_text() + "process_results: !function failing.fail\n")
    (broken / "failing.py").write_text("def fail(document, results):\n    raise RuntimeError('fails at its end')\n")
    arguments = command(run, broken, "failing", "lm-eval:add_choice", "lm-eval:add_prose")
    with pytest.raises(RuntimeError, match="fails at its end"):
        main(arguments)
    (line,) = map(json.loads, (folder / "results.part.jsonl").read_text().splitlines())
    assert line["request"] == "add_choice"
    assert line["results"][0]["items"] == LIMIT
    kept = [json.loads(one) for one in (folder / "samples.rank_0.jsonl").read_text().splitlines()]
    assert [one["task"] for one in kept] == ["add_choice"] * LIMIT


def test_a_file_that_was_trained_on_is_refused(
    run: Run,
    toy_project: ToyProject,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(toy_project.root)  # a plan's paths are relative to where it was made
    folder = write_tasks(tmp_path)
    definition = folder / "add_prose.yaml"
    trained = str(toy_project.root / "sums.jsonl")
    of_its_own = definition.read_text().replace(str(tmp_path / "test.jsonl"), trained)
    definition.write_text(of_its_own.replace(str(tmp_path / "train.jsonl"), trained))
    assert main(command(run, folder, "trained", "lm-eval:add_choice", "lm-eval:add_prose")) == 3
    said = capsys.readouterr().err
    assert "lm-eval:add_prose: the data of add_prose are files that sums was made of." in said
    assert not (run.stage_folder / "evaluations" / "trained").exists()
