"""Tasks of the harness through the command: what people read is what the harness finds on the export.

Tolerances as in tests/parity/test_lm_eval_vs_hf.py, which holds the engine itself to harder cases.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from data_tools.__main__ import main as main_of_data_tools
from data_tools.chat_template_files import SHIPPED_TEMPLATE
from megatron_ext.__main__ import main
from megatron_ext.convert.export import export_checkpoint
from megatron_ext.evaluate.kept_items import read_items
from megatron_ext.evaluate.lm_eval_tasks import load_tasks
from megatron_ext.evaluate.results import Contamination, Results, read_results
from megatron_ext.rollout.cli import find_checkpoint
from tests.support.distributed import run_distributed
from tests.support.harness_tasks import write_tasks
from tests.support.toy_project import Run, ToyProject

LIMIT = 5
REQUESTS = "requests.rank_0.jsonl"
MARKS: dict[str, dict[str, Any]] = {"add_words": {"log_prob": -1000.0}, "add_generate": {"text": "marked"}}
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
@pytest.mark.parametrize("task", ["add_words", "add_generate"], ids=["likelihoods", "answers"])
def test_a_task_that_was_killed_in_its_middle_goes_on_and_ends_as_if_it_had_not_been(
    run: Run, tasks: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("batch_tokens=64", "slots=1", "limit=12")  # one text, or one answer, after the other
    whole = evaluate(run, tasks, f"{task}-whole", f"lm-eval:{task}", sets=sets)
    folder = run.stage_folder / "evaluations" / f"{task}-killed"
    arguments = command(run, tasks, folder.name, f"lm-eval:{task}", sets=sets)
    kept = kill_when_lines_are_there([sys.executable, "-m", "megatron_ext", *arguments], folder / REQUESTS, least=3)
    assert not list(folder.glob("samples*"))
    other = shutil.copytree(folder, folder.with_name(f"{task}-marked"))
    (other / REQUESTS).write_text("".join(f"{json.dumps(json.loads(line) | MARKS[task])}\n" for line in kept))
    lines_of_whole = list(read_items(run.stage_folder / "evaluations" / f"{task}-whole"))

    load_tasks.cache_clear()
    capsys.readouterr()
    again = evaluate(run, tasks, folder.name, f"lm-eval:{task}", sets=sets)
    assert f"goes on from {len(kept):,} answers to lm-eval" in capsys.readouterr().err
    assert again.tasks == whole.tasks
    assert list(read_items(folder)) == lines_of_whole
    assert not (folder / REQUESTS).exists()

    load_tasks.cache_clear()  # what was kept is not asked again: marks in it come out, and nothing else changes
    evaluate(run, tasks, other.name, f"lm-eval:{task}", sets=sets)
    answers = flat([line["answers"] for line in read_items(other)])
    pairs = list(zip(answers, flat([line["answers"] for line in lines_of_whole]), strict=True))
    marked = [one for one, _ in pairs if one in MARKS[task].values()]
    assert len(kept) <= len(marked) < len(pairs)
    assert all(one == unmarked for one, unmarked in pairs if one not in MARKS[task].values())


def kill_when_lines_are_there(command: list[str], file: Path, *, least: int) -> list[str]:
    """Starts a process, kills it as soon as a file has so many lines, and gives its whole lines."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 600  # of a busy machine
        while not (file.is_file() and file.read_bytes().count(b"\n") >= least):
            assert process.poll() is None, f"ended before it was killed: {process.stderr and process.stderr.read()}"
            assert time.monotonic() < end, "nothing was kept"
            time.sleep(0.001)
    finally:
        process.kill()
        process.communicate()
    return file.read_text().rpartition("\n")[0].splitlines()  # not what the kill has cut


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


@pytest.fixture
def seen(run: Run, toy_project: ToyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Task files over two questions, of which the first stands in what the checkpoint was trained on; its folder."""
    monkeypatch.chdir(toy_project.root)  # a plan's paths are relative to where it was made
    folder = write_tasks(tmp_path, documents=2)
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    rows[0] |= {"question": "7 plus 0 is 7. 7 plus 1 is", "answer": "8"}
    rows[1] |= {"question": "How many legs have two beetles and a spider? They have", "answer": "20"}
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def reports_of(seen: Path, folder: Path, *sources: str) -> list[str]:
    """Writes the items by the command, and what data-tools finds of them in some sources."""
    asked = ["--tasks", "lm-eval:add_generate", "--include-path", str(seen), "--write-items", str(folder)]
    assert main(["evaluate", *asked]) == 0
    load_tasks.cache_clear()
    reports = [str(folder / f"{source}.overlap.jsonl") for source in sources]
    for source, report in zip(sources, reports, strict=True):
        against = ["--against", str(folder / "add_generate.jsonl"), "--ngram", "5", "--out", report]
        assert main_of_data_tools(["overlap", f"{source}.jsonl", *against]) == 0
    return reports


def test_items_that_a_report_finds_in_a_source_are_refused_before_the_model_is_loaded(
    run: Run, seen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = reports_of(seen, tmp_path / "items", "sums", "words")
    assert main([*command(run, seen, "seen", "lm-eval:add_generate"), "--overlap", *reports]) == 3
    said = capsys.readouterr().err
    assert "lm-eval:add_generate: 1 of 2 items overlap with what was trained on: sums (1)." in said
    assert not (run.stage_folder / "evaluations" / "seen").exists()


def contamination_with(run: Run, seen: Path, name: str, reports: list[str], *sets: str) -> Contamination:
    asked = command(run, seen, name, "lm-eval:add_generate", sets=sets)
    assert main([*asked, "--overlap", *reports] if reports else asked) == 0
    (task,) = read_results(run.stage_folder / "evaluations" / name).tasks
    return task.contamination


def test_items_that_a_report_finds_are_marked_on_request_and_unknown_where_none_looks(
    run: Run, seen: Path, tmp_path: Path
) -> None:
    reports = reports_of(seen, tmp_path / "items", "sums", "words")
    found = contamination_with(run, seen, "marked", reports, "contaminated=mark")
    assert (found.status, found.items) == ("overlaps", 1)
    assert {source.source: source.items for source in found.sources} == {"sums": 1, "words": 0}
    load_tasks.cache_clear()
    found = contamination_with(run, seen, "words-only", reports[1:])
    assert {source.source: source.items for source in found.sources} == {"sums": None, "words": 0}
    assert found.status == "unknown"
    assert (
        "no overlap report compares the items of add_generate with sums: megatron-ext evaluate --tasks "
        "lm-eval:add_generate --write-items DIR, then data-tools overlap SOURCE.yaml --against DIR/add_generate.jsonl"
    ) in found.note


def test_items_in_no_source_are_clean_and_a_report_of_other_items_says_nothing(
    run: Run, seen: Path, tmp_path: Path
) -> None:
    file = seen.parent / "test.jsonl"
    unseen = file.read_text().replace("7 plus 0 is 7. 7 plus 1 is", "How many wheels have three cars and a bicycle?")
    file.write_text(unseen)
    reports = reports_of(seen, tmp_path / "items", "sums", "words")
    assert contamination_with(run, seen, "clean", reports).status == "clean"
    file.write_text(file.read_text().replace("bicycle", "motorcycle"))
    load_tasks.cache_clear()
    assert contamination_with(run, seen, "others", reports).status == "unknown"


def test_only_the_documents_that_are_asked_count(run: Run, seen: Path, tmp_path: Path) -> None:
    file = seen.parent / "test.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))  # what was seen is second
    reports = reports_of(seen, tmp_path / "items", "sums", "words")
    assert contamination_with(run, seen, "first", reports, "limit=1").status == "clean"


def test_a_file_that_was_trained_on_is_refused(
    run: Run,
    toy_project: ToyProject,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(toy_project.root)
    folder = write_tasks(tmp_path)
    definition = folder / "add_prose.yaml"
    trained = str(toy_project.root / "sums.jsonl")
    of_its_own = definition.read_text().replace(str(tmp_path / "test.jsonl"), trained)
    definition.write_text(of_its_own.replace(str(tmp_path / "train.jsonl"), trained))
    assert main(command(run, folder, "trained", "lm-eval:add_choice", "lm-eval:add_prose")) == 3
    said = capsys.readouterr().err
    assert "lm-eval:add_prose: 5 of 5 items overlap with what was trained on: sums (5)" in said
    assert "lm-eval:add_choice: " not in said
    assert not (run.stage_folder / "evaluations" / "trained").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["STAGE", "--tasks", "lm-eval:add"], "--write-items reads tasks only; leave CHECKPOINT out."),
        (["--tasks", "verifiable:q.jsonl"], "--write-items is for tasks of lm-eval; prompt files are compared as they"),
    ],
)
def test_items_are_written_of_harness_tasks_alone(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments, "--write-items", str(tmp_path / "items")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "items").exists()


def test_a_metric_without_a_closed_form_leaves_stdout_to_json(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tasks(tmp_path)
    definition = folder / "add_choice.yaml"
    task = yaml.safe_load(definition.read_text())
    task["metric_list"] = [{"metric": "mcc"}]
    definition.write_text(yaml.safe_dump(task))
    asked = command(run, folder, "mcc", "lm-eval:add_choice", sets=("limit=12",))
    assert main([*asked, "--json"]) == 0
    found = Results.model_validate_json(capsys.readouterr().out)
    (metric,) = found.tasks[0].metrics
    assert (metric.name, metric.n) == ("mcc", 12)
    assert metric.interval is not None
    assert -1 <= metric.value <= metric.interval.high
