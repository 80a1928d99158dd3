"""The harness's numbers in our form: intervals that say something, numbers that are none, groups without numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from data_tools.errors import DataError
from megatron_ext.evaluate.lm_eval_results import task_results
from megatron_ext.evaluate.lm_eval_tasks import load_tasks
from megatron_ext.evaluate.options import Options
from megatron_ext.evaluate.results import Contamination, TaskResult
from megatron_ext.evaluate.tasks import read_request
from tests.support.harness_tasks import write_tasks


class Silent(LM):
    """A model to which all texts are alike, and that answers nothing: none of 12 sums is right."""

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        return [(-1.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: Any) -> list[float]:
        return [math.nan] * len(requests)

    def generate_until(self, requests: Any) -> list[str]:
        return [""] * len(requests)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tasks(tmp_path_factory.mktemp("harness"))
    (folder / "loose.yaml").write_text("group: loose\ntask: [add_choice, add_words]\n")
    return folder


def results(tasks: Path, name: str) -> list[TaskResult]:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(Silent(), tasks=[name], task_manager=manager, bootstrap_iters=10)
    assert found is not None
    request = read_request(f"lm-eval:{name}", Options())
    loaded = load_tasks(name, tasks, asked_as=name)
    known = {part: Contamination(status="unknown") for part, _ in loaded.parts(name)}
    return task_results(request, loaded, found, notes=["a note"], max_length=64, contamination=known)


def test_a_group_without_numbers_of_its_own_is_its_tasks(tasks: Path) -> None:
    assert [(one.task, one.name, one.headline) for one in results(tasks, "loose")] == [
        ("lm-eval:loose/add_choice", "loose/add_choice", "acc"),
        ("lm-eval:loose/add_words", "loose/add_words", "acc"),
    ]


def test_a_task_asked_alone_and_as_part_of_another_has_two_names(tasks: Path) -> None:
    names = [one.name for name in ("add_choice", "loose") for one in results(tasks, name)]
    assert len(set(names)) == 3


def test_no_right_answer_of_twelve_has_an_interval_with_a_width(tasks: Path) -> None:
    (found,) = results(tasks, "add_generate")
    metric = found.metric("exact_match")
    assert (metric.value, metric.n) == (0.0, 12)
    assert metric.interval is not None
    assert (metric.interval.low, metric.interval.method) == (0.0, "Wilson, over items")
    assert metric.interval.high == pytest.approx(0.2425, abs=1e-4)  # 3.8415 / 15.8415


def test_three_right_answers_of_twelve_have_wilsons_interval(tasks: Path) -> None:
    (found,) = results(tasks, "add_choice")  # the first of all alike is chosen; 3 of 12 have their answer there
    metric = found.metric("acc")
    assert metric.value == 0.25
    assert metric.interval is not None
    assert metric.interval.low == pytest.approx(0.0889, abs=1e-4)
    assert metric.interval.high == pytest.approx(0.5323, abs=1e-4)


def test_a_task_without_a_finite_number_is_refused_by_name(tasks: Path) -> None:
    with pytest.raises(DataError, match=r"task lm-eval:add_prose: metric: any: found no finite number; it has none\."):
        results(tasks, "add_prose")
