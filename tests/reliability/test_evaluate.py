"""Evaluations of a trained stage: validation's numbers, the same in every layout, killed and gone on, refused in time.

fp32 on a CPU. Two data-parallel ranks run the same batches as one: their losses are the same numbers, but for how
core adds up a microbatch of another size in rows laid end to end (1e-6). Tensor-parallel ranks add up in another order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.adapters import adapter_named
from data_tools.chat_template_files import SHIPPED_TEMPLATE
from data_tools.overlap import Corpus, find_overlap, write_pair, write_report
from data_tools.tokenizer import Tokenizer
from megatron_ext.__main__ import main
from megatron_ext.datasets.ledger import LedgerRow, ledger_json, read_ledger
from megatron_ext.evaluate.contamination import trained_sources
from megatron_ext.evaluate.kept_items import read_items
from megatron_ext.evaluate.loading import opened_checkpoint
from megatron_ext.evaluate.results import Contamination, Results, read_results
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.runtime.launch import Launch
from tests.support.distributed import run_distributed
from tests.support.one_process import logits_of
from tests.support.rl_project import add_rl, prompt_line, write_prompts
from tests.support.toy_project import Run, ToyProject, environment, make_toy_project

SAMPLING = ("samples=3", "temperature=1", "max_new_tokens=8", "scorer=number", f"chat_template={SHIPPED_TEMPLATE}")
QUESTIONS = "verifiable:questions.jsonl"
WORDS = "held-out:data/words.validation"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    project = make_toy_project(tmp_path_factory.mktemp("evaluate") / "toy")
    write_prompts(project.root / "questions.jsonl", [prompt_line(n) for n in range(6)])
    return project


@pytest.fixture(scope="module")
def run(project: ToyProject) -> Run:
    run = project.run(project.root / "runs")
    assert run.code == 0, run.output
    return run


@pytest.fixture(autouse=True)
def _in_the_project(project: ToyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)  # a plan's paths are relative to where it was made


def command(run: Run, name: str, *tasks: str, sets: tuple[str, ...] = ()) -> list[str]:
    options = [part for one in sets for part in ("--set", one)]
    return ["evaluate", str(run.stage_folder), "--tasks", *tasks, "--name", name, *options]


def evaluate(run: Run, name: str, *tasks: str, sets: tuple[str, ...] = ()) -> Results:
    """The results of an evaluation in this process."""
    torch.set_num_threads(1)
    assert main(command(run, name, *tasks, sets=sets)) == 0
    return read_results(run.stage_folder / "evaluations" / name)


def evaluate_on_this_rank(folder: str, arguments: list[str]) -> int:
    os.chdir(folder)
    return main(arguments)


def evaluate_on_two(run: Run, name: str, *tasks: str, tensors: int, sets: tuple[str, ...] = ()) -> Results:
    """The results of an evaluation on two ranks."""
    arguments = [*command(run, name, *tasks, sets=sets), "--tensor-model-parallel-size", str(tensors)]
    assert run_distributed(evaluate_on_this_rank, 2, str(run.run_root.parent), arguments, timeout_s=180) == [0, 0]
    return read_results(run.stage_folder / "evaluations" / name)


def values_of(results: Results) -> dict[tuple[str, str], float]:
    return {(task.name, metric.name): metric.value for task in results.tasks for metric in task.metrics}


def answers_of(run: Run, name: str) -> list[dict[str, Any]]:
    return list(read_items(run.stage_folder / "evaluations" / name))


@pytest.fixture(scope="module")
def alone(run: Run, project: ToyProject) -> Results:
    os.chdir(project.root)
    return evaluate(run, "alone", "held-out", WORDS, QUESTIONS, sets=SAMPLING)


def test_held_out_loss_on_the_rows_of_validation_is_what_the_training_loop_logged(run: Run) -> None:
    results = evaluate(run, "rows", "held-out", sets=("rows=5",))  # validation_tokens: 320 are 5 rows of 64
    logged = run.metrics[-1]["validation"]
    found = {task.name.removeprefix("held-out/"): task.metric("loss").value for task in results.tasks}
    assert found == pytest.approx(logged, rel=1e-6)
    assert [task.metric("loss").n for task in results.tasks] == [320, 320]


def test_held_out_sets_are_read_to_their_last_token(alone: Results, project: ToyProject) -> None:
    for name in ("sums", "words"):
        task = next(task for task in alone.tasks if task.name == f"held-out/{name}")
        manifest = json.loads((project.root / "data" / f"{name}.validation.manifest.json").read_text())
        lines = (project.root / f"{name}.validation.jsonl").read_text().splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        first = Tokenizer.load(project.root / "data" / "tokenizer").encode(texts[0])[:1]
        spelled = Tokenizer.load(project.root / "data" / "tokenizer").decode(first)
        assert task.details["tokens"] == manifest["tokens"] - 1  # nothing stands before the first
        assert task.details["bytes"] == sum(len(text.encode()) for text in texts) - len(spelled.encode())


def test_a_document_is_predicted_alone_in_windows_each_token_once(
    run: Run, alone: Results, project: ToyProject
) -> None:
    tokenizer = Tokenizer.load(project.root / "data" / "tokenizer")
    lines = (project.root / "words.validation.jsonl").read_text().splitlines()[:2]
    checkpoint = run.stage_folder / "checkpoints" / "step_10"
    expected = []
    with opened_checkpoint(checkpoint, Launch(rank=0, local_rank=0, world_size=1)) as opened:
        for text in (json.loads(line)["text"] for line in lines):
            ids = [tokenizer.eod_id, *tokenizer.encode(text), tokenizer.eod_id]
            assert len(ids) > 65, "a document of two windows"
            nats = 0.0
            for start in range(0, len(ids) - 1, 64):
                window = torch.tensor([ids[start : start + 65]])
                log_probs = logits_of(opened.model, window[:, :-1]).double().log_softmax(-1)
                nats -= float(log_probs.gather(-1, window[:, 1:, None]).sum())
            expected.append((nats, len(ids) - 1, len(text.encode())))
    kept = [line for line in answers_of(run, "alone") if line["task"] == "words.validation"]
    for number, (nats, tokens, num_bytes) in enumerate(expected):
        windows = [line for line in kept if line["item"] == f"{number:08d}"]
        assert sum(line["score"] for line in windows) == pytest.approx(nats, rel=1e-6)
        assert sum(line["weight"] for line in windows) == tokens
        assert sum(line["bytes"] for line in windows) == num_bytes
    task = alone.tasks[2]
    bits = task.details["nats"] / task.details["bytes"] / 0.6931471805599453
    assert task.metric("bits_per_byte").value == pytest.approx(bits, rel=1e-12)


def test_one_document_gives_no_interval(run: Run) -> None:
    (task,) = evaluate(run, "one", WORDS, sets=("limit=1",)).tasks
    assert [metric.interval for metric in task.metrics] == [None, None]


@pytest.mark.parametrize(("layout", "tensors"), [("dp2", 1), ("tp2", 2)])
def test_results_are_the_same_on_two_ranks(run: Run, alone: Results, layout: str, tensors: int) -> None:
    results = evaluate_on_two(run, layout, "held-out", WORDS, QUESTIONS, tensors=tensors, sets=SAMPLING)
    assert results.engine.tensor_model_parallel_size == tensors
    assert values_of(results) == pytest.approx(values_of(alone), rel=1e-6)
    mine, theirs = (
        [line for line in answers_of(run, name) if line["task"] == "questions"] for name in ("alone", layout)
    )
    assert len(mine) == 6 * 3
    assert mine == theirs


def test_a_killed_evaluation_goes_on_without_doing_anything_again(
    run: Run, alone: Results, project: ToyProject
) -> None:
    sets = (*SAMPLING, "slots=1")
    folder = run.stage_folder / "evaluations" / "killed"
    kept, finished = folder / "samples.rank_0.jsonl", folder / "results.part.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_ext", *command(run, "killed", WORDS, QUESTIONS, sets=sets)],
        cwd=project.root,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not kept.is_file() or kept.read_bytes().count(b'"task": "questions"') < 4:
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = kept.read_bytes()
    lines = [json.loads(line) for line in before[: before.rindex(b"\n") + 1].splitlines()]
    answered = sum(line["task"] == "questions" for line in lines)
    marked = [line | ({"score": 1.0} if line["task"] == "questions" else {}) for line in lines]  # none is right
    kept.write_text("".join(json.dumps(line) + "\n" for line in marked))
    (words,) = map(json.loads, finished.read_text().splitlines())
    words["results"][0]["metrics"][0]["value"] = 1.25
    finished.write_text(json.dumps(words) + "\n" + '{"request": "questi')  # of another line only this was written
    results = evaluate(run, "killed", WORDS, QUESTIONS, sets=sets)
    assert 4 <= answered < 18
    assert results.tasks[0].metric("loss").value == 1.25  # taken, not computed again
    assert results.tasks[1].metric("avg@3").value == pytest.approx(answered / 18)  # taken, not sampled again
    answers, whole_run = ([line | {"score": 0.0} for line in answers_of(run, name)] for name in ("killed", "alone"))
    assert answers == [line for line in whole_run if line["task"] in ("questions", "words.validation")]
    assert not kept.exists()
    assert not finished.exists()


def test_tasks_of_other_programs_alone_need_no_model(run: Run, tmp_path: Path) -> None:
    copy = run.copied(tmp_path / "runs")
    for weights in (copy.stage_folder / "checkpoints" / "step_10").glob("*.distcp"):
        weights.unlink()
    assert main(command(copy, "others", "external:code")) == 0
    results = read_results(copy.stage_folder / "evaluations" / "others")
    assert (results.tasks, results.engine.name) == ((), "other programs")
    number = copy.stage_folder / "evaluations" / "others" / "external" / "code.json"
    number.write_text('{"value": 0.41, "items": 500}')
    assert main(command(copy, "others", "external:code")) == 0
    (task,) = read_results(copy.stage_folder / "evaluations" / "others").tasks
    assert (task.name, task.metric().value) == ("code", 0.41)


def test_a_percentage_brought_as_a_share_is_refused_before_the_model_is_loaded(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = run.stage_folder / "evaluations" / "percent" / "external"
    folder.mkdir(parents=True)
    for value, said in (("41", "value 41: must be a share in [0, 1]"), ("NaN", "value nan: must be a share")):
        (folder / "code.json").write_text(f'{{"value": {value}, "items": 500}}')
        assert said in refused(run, capfd, *command(run, "percent", WORDS, "external:code")[1:], code=3)


def test_a_finished_evaluation_is_not_done_again(run: Run, alone: Results, capfd: pytest.CaptureFixture[str]) -> None:
    again = evaluate(run, "alone", "held-out", WORDS, QUESTIONS, sets=SAMPLING)
    assert again.created == alone.created
    assert "finished before" in capfd.readouterr().err


def test_a_checkpoint_of_a_running_stage_is_evaluated_and_says_so(run: Run, tmp_path: Path) -> None:
    copy = run.copied(tmp_path / "runs")
    (copy.stage_folder / "stage.json").unlink()
    assert main(["evaluate", str(copy.stage_folder), "--tasks", "held-out", "--set", "rows=1", "--name", "now"]) == 0
    results = read_results(copy.stage_folder / "evaluations" / "now")
    assert (results.checkpoint.is_finished, results.checkpoint.step) == (False, 10)


def test_a_folder_that_was_asked_something_else_is_refused_or_set_aside(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    before = evaluate(run, "twice", "held-out", sets=("rows=1",))
    again = command(run, "twice", "held-out", sets=("rows=2",))
    assert "was asked something else (tasks)" in refused(run, capfd, *again[1:], code=2)
    assert main([*again, "--set-aside"]) == 0
    folder = run.stage_folder / "evaluations"
    assert read_results(folder / "twice.before_1") == before
    assert {task.metric("loss").n for task in read_results(folder / "twice").tasks} == {128}
    assert main([*again, "--set-aside"]) == 0  # the same question: nothing to do, and nothing to set aside
    assert not (folder / "twice.before_2").exists()


def refused(run: Run, capfd: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    assert main(["evaluate", *arguments]) == code
    return capfd.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "sets", "code", "said"),
    [
        (["verifiable:gone.jsonl"], [f"chat_template={SHIPPED_TEMPLATE}"], 3, "gone.jsonl: cannot be read: No such"),
        (["verifiable:questions.jsonl"], [], 3, "holds no chat template, so its stage was not taught to answer"),
        (["verifiable:mixed.jsonl"], SAMPLING, 3, "mixed.jsonl: 1 of 2 prompts are unusable: 1 no verifiable answer"),
        (["verifiable:none.jsonl"], SAMPLING, 3, "none.jsonl: holds no prompt with an answer that can be judged"),
        (["held-out:data/sums"], [], 3, "was trained on these very tokens, source 'sums'"),
        (["held-out:data/gone"], [], 3, "data/gone.manifest.json: no such file"),
        (["held-out", "held-out"], [], 2, "would be named held-out alike"),
        (["held-out"], ["rows=0"], 2, "rows=0: Input should be greater than or equal to 1"),
        ([], [], 2, "evaluate: name tasks"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_written(
    run: Run,
    project: ToyProject,
    capfd: pytest.CaptureFixture[str],
    tasks: list[str],
    sets: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    bad = prompt_line(2, reward_model={"ground_truth": "many"})
    write_prompts(project.root / "mixed.jsonl", [prompt_line(1), bad])
    write_prompts(project.root / "none.jsonl", [bad])
    options = [part for one in sets for part in ("--set", one)]
    named = ["--tasks", *tasks] if tasks else []
    assert said in refused(run, capfd, str(run.stage_folder), *named, "--name", "bad", *options, code=code)
    assert not (run.stage_folder / "evaluations" / "bad").exists()


def test_a_stage_without_a_checkpoint_is_refused(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    said = refused(run, capfd, str(tmp_path), "--tasks", "held-out", code=3)
    assert "this stage has no complete checkpoint yet" in said


def test_a_damaged_checkpoint_is_refused(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copy = run.copied(tmp_path / "runs")
    weights = next((copy.stage_folder / "checkpoints" / "step_10").glob("*.distcp"))
    weights.write_bytes(weights.read_bytes()[:-1])
    said = refused(run, capfd, str(copy.stage_folder), "--tasks", "held-out", code=3)
    assert "this checkpoint is damaged; nothing was loaded" in said


@pytest.mark.parametrize(("size", "said"), [("2", "does not divide the 1 processes"), ("3", "legal: 1, 2")])
def test_ranks_that_cannot_share_the_model_are_refused(
    run: Run, capfd: pytest.CaptureFixture[str], size: str, said: str
) -> None:
    arguments = (str(run.stage_folder), "--tasks", "held-out", "--set", "rows=1", "--tensor-model-parallel-size", size)
    assert said in refused(run, capfd, *arguments, code=2)


def write_benchmark(
    project: ToyProject, folder: str, *, reports: tuple[str, ...], is_seen: bool = True, n: int = 5
) -> str:
    """Two prompts, of which the first stands in source `sums` if it is to, and reports beside them; gives the task."""
    root = project.root / folder
    seen = "7 plus 0 is 7. 7 plus 1 is 8. 7 plus 2 is" if is_seen else "How many legs have two beetles and a spider?"
    unseen = "Which number comes behind the number of days that a week has?"
    lines = [prompt_line(n, prompt=[{"role": "user", "content": text}]) for n, text in ((8, seen), (7, unseen))]
    write_prompts(root / "test.jsonl", lines)
    benchmark = Corpus("test.jsonl", (([root / "test.jsonl"], adapter_named("nemotron-crossthink")),))
    for name in reports:
        found = find_overlap(Corpus(name, (([project.root / f"{name}.jsonl"], adapter_named("text")),)), benchmark, n=n)
        report: list[bytes] = []
        write_pair(found, report.append)
        write_report(found, report.append)
        (root / f"{name}.overlap.jsonl").write_bytes(b"".join(report))
    return f"verifiable:{folder}/test.jsonl"


def test_the_prompts_that_an_rl_stage_holds_out_are_a_task(run: Run, project: ToyProject) -> None:
    loaded = load_recipe(add_rl(project), site=project.root / "site.yaml")
    plan = make_stage_plan(loaded, run_root=run.run_root)
    stage = run.run_root / "stages" / plan.stage_id
    stage.mkdir()
    (stage / "plan.json").write_text(plan.model_dump_json())
    (task,) = evaluate(run, "held-out-prompts", f"verifiable:{stage}", sets=SAMPLING).tasks
    assert (task.items, task.data_id) == (8, plan.data.sources[0].validation_data_id)


def contamination_of(run: Run, name: str, task: str, *sets: str) -> Contamination:
    return evaluate(run, name, task, sets=(*SAMPLING, *sets)).tasks[0].contamination


def test_a_benchmark_that_was_trained_on_is_refused(
    run: Run, project: ToyProject, capfd: pytest.CaptureFixture[str]
) -> None:
    task = write_benchmark(project, "seen", reports=("sums", "words"))
    options = [part for one in SAMPLING for part in ("--set", one)]
    said = refused(run, capfd, str(run.stage_folder), "--tasks", task, *options, code=3)
    assert "1 of 2 items overlap with what was trained on: sums (1)." in said
    assert "--contaminated mark" in said


def test_a_benchmark_that_was_trained_on_is_marked_on_request(run: Run, project: ToyProject) -> None:
    found = contamination_of(run, "marked", write_benchmark(project, "mark", reports=("sums",)), "contaminated=mark")
    assert (found.status, found.items) == ("overlaps", 1)
    assert {source.source: source.items for source in found.sources} == {"sums": 1, "words": None}


def test_a_source_that_no_report_covers_is_unknown_not_clean(run: Run, project: ToyProject) -> None:
    found = contamination_of(run, "unknown", write_benchmark(project, "unknown", reports=("words",)))
    assert (found.status, found.items) == ("unknown", None)
    assert {source.source: source.items for source in found.sources} == {"sums": None, "words": 0}
    assert "no overlap report compares unknown/test.jsonl with sums:" in found.note


def test_a_source_of_which_a_report_covers_some_files_only_is_unknown(run: Run, project: ToyProject) -> None:
    file = project.root / "data" / "sums.manifest.json"
    one_file = file.read_text()
    manifest = json.loads(one_file)
    manifest["sources"].append(manifest["sources"][0] | {"path": "more.jsonl", "sha256": "0" * 64})
    try:
        file.write_text(json.dumps(manifest))
        task = write_benchmark(project, "parts", reports=("sums", "words"), is_seen=False)
        found = contamination_of(run, "parts", task)
    finally:
        file.write_text(one_file)
    assert found.status == "unknown"
    assert {source.source: source.items for source in found.sources} == {"sums": None, "words": 0}


def test_a_report_of_longer_ngrams_than_may_be_says_nothing(run: Run, project: ToyProject) -> None:
    found = contamination_of(run, "long", write_benchmark(project, "long", reports=("sums", "words"), n=50))
    assert found.status == "unknown"
    assert "no overlap report compares" in found.note


@pytest.mark.parametrize(("is_seen", "status"), [(True, "overlaps"), (False, "clean")])
def test_a_prompt_of_fewer_words_than_an_ngram_is_looked_for_whole(
    run: Run, project: ToyProject, is_seen: bool, status: str
) -> None:
    task = write_benchmark(project, f"short {status}", reports=("sums", "words"), is_seen=is_seen, n=50)
    found = contamination_of(run, f"short {status}", task, "contamination_ngram=50", "contaminated=mark")
    assert (found.status, found.items) == (status, int(is_seen))


def test_a_report_that_did_not_look_for_short_documents_is_refused(
    run: Run, project: ToyProject, capfd: pytest.CaptureFixture[str]
) -> None:
    task = write_benchmark(project, "before", reports=("sums",))
    file = project.root / "before" / "sums.overlap.jsonl"
    pair, *hits = map(json.loads, file.read_bytes().splitlines())
    del pair["within"]
    file.write_text("".join(json.dumps(line) + "\n" for line in (pair, *hits)))
    options = [part for one in SAMPLING for part in ("--set", one)]
    said = refused(run, capfd, str(run.stage_folder), "--tasks", task, *options, code=3)
    assert "sums.overlap.jsonl: does not say what was compared, or is older than the search for short doc" in said


def test_reports_of_another_benchmark_say_nothing_of_this_one(run: Run, project: ToyProject) -> None:
    task = write_benchmark(project, "other", reports=("sums", "words"))
    write_prompts(project.root / "other" / "test.jsonl", [prompt_line(3)])
    assert contamination_of(run, "other", task).status == "unknown"


def test_what_no_report_finds_anything_of_is_clean(run: Run, project: ToyProject) -> None:
    found = contamination_of(run, "clean", write_benchmark(project, "clean", reports=("sums", "words"), is_seen=False))
    assert (found.status, found.items) == ("clean", 0)
    assert {source.source: source.items for source in found.sources} == {"sums": 0, "words": 0}


def test_what_an_imported_model_has_read_is_unknown(run: Run, tmp_path: Path) -> None:
    checkpoint = run.copied(tmp_path / "runs").stage_folder / "checkpoints" / "step_10"
    imported = LedgerRow(phase=0, source="imported from base", domain="unknown", data_id="hash of its weights")
    rows = [imported, *read_ledger(checkpoint)]
    (checkpoint / "ledger.json").write_text(ledger_json(rows))
    found = {source.name: len(source.files) for source in trained_sources(checkpoint)}
    assert found == {"imported from base": 0, "sums": 1, "words": 1}
