"""Two evaluations of the same items, compared item by item."""

from pathlib import Path

import pytest

from data_tools.errors import DataError
from megatron_ext.evaluate.compare import compare, other_options
from megatron_ext.evaluate.kept_items import KeptItems, finish_items
from megatron_ext.evaluate.results import Contamination, Metric, TaskResult, read_results, write_results
from tests.support.evaluation_results import results_of

SCORES = [1, 1, 0, 0, 1, 0, 1, 0]


def task(name: str = "sums", *, value: float = 0.5, data_id: str = "d") -> TaskResult:
    return TaskResult(
        task=f"verifiable:{name}",
        kind="verifiable",
        name=name,
        headline="avg@1",
        metrics=(Metric(name="avg@1", value=value, n=8), Metric(name="well_formed", value=1.0, n=8)),
        items=8,
        data_id=data_id,
        seed=1,
        contamination=Contamination(status="clean"),
    )


def keep(folder: Path, scores: list[int]) -> Path:
    folder.mkdir()
    kept = KeptItems(folder, rank=0, lines=())
    for number, score in enumerate(scores):
        kept.add("sums", f"item-{number}", score=score)
    kept.close()
    finish_items(folder)
    return folder


def test_items_that_all_differ_alike_give_no_interval_without_width(tmp_path: Path) -> None:
    a, b = keep(tmp_path / "a", SCORES), keep(tmp_path / "b", SCORES)
    same, form = compare(results_of(task()), results_of(task()), a, b)
    assert (same.first, same.second, same.low, same.note) == (0.5, 0.5, None, "all items alike")
    assert (form.metric, form.low) == ("well_formed", None)


def test_one_item_more_right_moves_the_interval_by_that_item_alone(tmp_path: Path) -> None:
    a, b = keep(tmp_path / "a", SCORES), keep(tmp_path / "b", [1, *SCORES[1:2], 1, *SCORES[3:]])
    found = compare(results_of(task()), results_of(task(value=0.625)), a, b)[0]
    assert found.second - found.first == 0.125
    assert found.low == 0.0
    assert found.high is not None
    assert 0.25 <= found.high <= 0.5  # of 8 draws of one item in 8 two or three are it, rarely four


def test_what_was_asked_otherwise_is_named_but_for_what_changes_no_number() -> None:
    first = results_of(task()).model_copy(update={"options": {"temperature": 0.5, "slots": 8, "top_p": 1.0}})
    second = results_of(task()).model_copy(update={"options": {"temperature": 1.5, "slots": 32, "top_p": 1.0}})
    assert other_options(first, second) == ["temperature: 0.5 and 1.5"]


def test_other_items_are_not_paired(tmp_path: Path) -> None:
    a, b = keep(tmp_path / "a", SCORES), keep(tmp_path / "b", SCORES)
    found = compare(results_of(task()), results_of(task(data_id="e")), a, b)[0]
    assert (found.low, found.note) == (None, "other items")


def test_evaluations_without_a_common_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no task in common"):
        compare(results_of(task()), results_of(task("words")), tmp_path, tmp_path)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = results_of(task())
    write_results(tmp_path, results)
    assert read_results(tmp_path) == results


def test_results_of_another_version_are_refused(tmp_path: Path) -> None:
    file = write_results(tmp_path, results_of(task()))
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(DataError, match="schema_version: 9 is not 1"):
        read_results(file)


def test_results_that_were_edited_are_refused_with_the_key(tmp_path: Path) -> None:
    file = write_results(tmp_path, results_of(task()))
    file.write_text(file.read_text().replace('"seconds": 1.0', '"seconds": "long"'))
    with pytest.raises(DataError, match="seconds: Input should be a valid number"):
        read_results(file)


def test_a_folder_without_results_names_those_below_it(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / "one"
    folder.mkdir(parents=True)
    write_results(folder, results_of(task()))
    with pytest.raises(DataError, match="evaluations/one"):
        read_results(tmp_path)
