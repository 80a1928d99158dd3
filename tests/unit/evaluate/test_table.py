"""What people see of results: percent where it is a ratio, the difference with its interval, questions and answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.evaluate.items_view import print_items
from megatron_ext.evaluate.kept_items import KeptItems, finish_items
from megatron_ext.evaluate.results import Aggregate, Contamination, Interval, Metric, TaskResult
from megatron_ext.evaluate.table import print_comparison, print_results
from tests.support.evaluation_results import results_of


def task(name: str, metric: Metric, *, status: str = "clean") -> TaskResult:
    return TaskResult(
        task=name,
        kind="verifiable",
        name=name,
        headline=metric.name,
        metrics=(metric,),
        items=2,
        data_id="d",
        seed=1,
        contamination=Contamination.model_validate({"status": status, "note": "1 of 2 items overlap"}),
        notes=("3 of 8 answers were cut",),
    )


def accuracy(value: float) -> Metric:
    return Metric(name="avg@4", value=value, n=2, interval=Interval(low=0.25, high=0.625, method="by hand"))


def keep(folder: Path, scores: list[float]) -> Path:
    folder.mkdir()
    kept = KeptItems(folder, rank=0, lines=())
    for number, score in enumerate(scores):
        turns = [{"role": "user", "content": f"What is {number} plus 1?"}]
        kept.add("sums", f"{number}", score=score, prompt=turns, text=f"It is {number}.", answer=None, truth="one more")
    kept.close()
    finish_items(folder)
    return folder


def words_of(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_ratios_are_shown_in_percent_and_losses_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    loss = Metric(name="loss", value=2.34567, n=1_000, is_higher_better=False)
    print_results(results_of(task("sums", accuracy(0.5)), task("words", loss)), Path("evaluations/one"))
    words = words_of(capsys)
    assert ["sums", "avg@4", "50.00", "%", "25.00", "to", "62.50", "2"] in words
    assert ["words", "loss", "2.3457", "1,000"] in words


def test_notes_and_contamination_stand_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(results_of(task("sums", accuracy(0.5), status="overlaps")), Path("evaluations/one"))
    printed = capsys.readouterr().out
    assert "sums: contamination overlaps: 1 of 2 items overlap" in printed
    assert "sums: 3 of 8 answers were cut" in printed


def test_an_aggregate_that_misses_a_task_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    part = Aggregate(name="math", value=None, rule="mean", of=("sums", "aime"), missing=("aime",))
    results = results_of(task("sums", accuracy(0.5))).model_copy(update={"aggregates": (part,)})
    print_results(results, Path("evaluations/one"))
    assert ["math", "mean", "missing", "aime", "2"] in words_of(capsys)


def test_a_comparison_shows_both_values_and_their_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = keep(tmp_path / "a", [0.25, 0.75]), keep(tmp_path / "b", [0.5, 0.5])
    print_comparison(results_of(task("sums", accuracy(0.5))), results_of(task("sums", accuracy(0.75))), *folders)
    assert ["sums", "avg@4", "50.00", "%", "75.00", "%", "25.00", "-25.00", "to", "25.00"] in words_of(capsys)


def test_items_are_shown_with_question_answer_and_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_items(keep(tmp_path / "a", [0.0, 1.0, 1.0]), most=2)
    printed = capsys.readouterr().out
    for part in ("user: What is 1 plus 1?", "It is 1.", "truth  one more", "score 1", "2 of 3 lines shown"):
        assert part in printed
    assert "What is 2 plus 1?" not in printed


def test_items_go_through_a_pipe_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_items(keep(tmp_path / "a", [0.0, 1.0]), most=1, as_json=True)
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["item"], line["score"], line["truth"]) == ("0", 0.0, "one more")


def test_several_missing_tasks_are_named_below_a_narrow_table(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("gsm8k", "math_500", "aime24")
    part = Aggregate(name="math", value=None, rule="mean", of=names, missing=names)
    print_results(results_of().model_copy(update={"aggregates": (part,)}), Path("evaluations/one"))
    words = words_of(capsys)
    assert ["math", "mean", "missing", "3", "3"] in words
    assert ["math:", "missing", "gsm8k,", "math_500,", "aime24"] in words
    assert words[-1] == ["no", "task", "has", "a", "result", "yet"]
