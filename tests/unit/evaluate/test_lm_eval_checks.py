"""What is wrong with a task is said before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_tools.errors import UsageError
from megatron_ext.evaluate.lm_eval_checks import metric_names, require_possible
from megatron_ext.evaluate.lm_eval_tasks import load_tasks
from megatron_ext.evaluate.options import Options
from megatron_ext.evaluate.tasks import read_request
from tests.support.harness_tasks import write_tasks


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tasks(tmp_path_factory.mktemp("harness"))
    (folder / "loose.yaml").write_text("group: loose\ntask: [add_choice, add_words]\n")
    filtered = yaml.safe_load((folder / "add_generate.yaml").read_text()) | {"task": "add_filtered"}
    filtered["filter_list"] = [{"name": "strict", "filter": [{"function": "take_first"}]}]
    (folder / "add_filtered.yaml").write_text(yaml.safe_dump(filtered))
    unknown = yaml.safe_load((folder / "add_choice.yaml").read_text()) | {"task": "add_unknown"}
    unknown["metric_list"] = [{"metric": "mcc", "aggregation": "mcc", "higher_is_better": True}]
    (folder / "add_unknown.yaml").write_text(yaml.safe_dump(unknown))
    return folder


def require(tasks: Path, name: str, *, max_length: int = 64, **extra: Any) -> None:
    request = read_request(f"lm-eval:{name}", Options(), extra=extra)
    require_possible(request, load_tasks(name, tasks, asked_as=name), max_length)


def refusal(tasks: Path, name: str, **asked: Any) -> str:
    with pytest.raises(UsageError) as caught:
        require(tasks, name, **asked)
    return str(caught.value)


def test_metrics_have_the_names_that_results_give_them(tasks: Path) -> None:
    found = {}
    for name in ("add_choice", "add_filtered", "add", "loose"):
        loaded = load_tasks(name, tasks, asked_as="names")
        found[name] = [(part, metric_names(loaded, part, members)) for part, members in loaded.parts(name)]
    assert found == {
        "add_choice": [("add_choice", ["acc", "acc_norm"])],
        "add_filtered": [("add_filtered", ["exact_match,strict"])],
        "add": [("add", ["acc"])],
        "loose": [("add_choice", ["acc", "acc_norm"]), ("add_words", ["acc", "acc_norm"])],
    }


def test_a_metric_that_a_task_does_not_have_is_refused_and_the_others_named(tasks: Path) -> None:
    assert refusal(tasks, "add_choice", metric="f1") == (
        "task lm-eval:add_choice: metric: f1: add_choice has acc, acc_norm."
    )
    assert refusal(tasks, "add_filtered", metric="exact_match").endswith("add_filtered has exact_match,strict.")
    require(tasks, "add_filtered", metric="exact_match,strict")
    require(tasks, "loose", metric="acc_norm")


def test_a_metric_that_a_group_does_not_make_is_refused(tasks: Path) -> None:
    assert refusal(tasks, "add", metric="acc_norm") == "task lm-eval:add: metric: acc_norm: add has acc."


def test_a_way_of_sampling_that_the_engine_does_not_know_is_refused(tasks: Path) -> None:
    said = refusal(tasks, "add_generate", generation_kwargs={"num_beams": 4})
    assert said.startswith("task lm-eval:add_generate: add_generate: generation_kwargs: num_beams: this engine knows ")


def test_answers_as_long_as_the_model_are_refused(tasks: Path) -> None:
    said = refusal(tasks, "add_generate", max_length=12)  # its max_gen_toks
    assert "max_gen_toks: 12: leaves no room for a question among the model's 12 tokens" in said
    require(tasks, "add_generate", max_length=13)
    require(tasks, "add_generate", max_length=12, generation_kwargs={"max_gen_toks": 11})


def test_an_aggregation_that_the_harness_does_not_know_is_refused(tasks: Path) -> None:
    said = refusal(tasks, "add_unknown")
    assert said.startswith("task lm-eval:add_unknown: add_unknown: metric_list: mcc: lm-eval knows no aggregation of ")
