"""Suites: the shipped ones make the paper's averages of the paper's benchmarks; wrong ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import RecipeError
from megatron_ext.__main__ import main
from megatron_ext.evaluate.results import Contamination, Metric, TaskResult
from megatron_ext.evaluate.suite import read_suite

REPOSITORY = Path(__file__).parents[3]
FOLDER = REPOSITORY / "recipes" / "evaluate"
ROUNDING = 0.02
"""The paper's averages are of numbers with more digits than it prints."""

M_LMQ_BASE = {
    "arc_c": 81.83,
    "race": 79.43,
    "winogrande": 69.38,
    "hellaswag": 76.67,
    "gsm8k": 85.14,
    "math_500": 59.60,
    "mmlu": 65.42,
    "mmlu_pro": 43.56,
    "humaneval": 51.68,
    "humaneval_plus": 46.28,
    "mbpp": 51.47,
    "mbpp_sanitized": 60.97,
}
M_LMQ_SFT = {
    "ifeval": 49.82,
    "aime24": 41.88,
    "aime25": 33.12,
    "gsm8k": 92.84,
    "math_500": 90.85,
    "mmlu": 73.49,
    "mmlu_pro": 55.54,
    "gpqa_diamond": 32.20,
    "livecodebench": 35.55,
}
M_LMQ_RL = {
    "math_500": 87.13,
    "gsm8k": 93.07,
    "aime24": 45.21,
    "aime25": 33.96,
    "gpqa_diamond": 31.69,
    "mmlu": 72.91,
    "mmlu_pro": 56.91,
    "livecodebench": 32.43,
}
SHIPPED = {
    "base": (M_LMQ_BASE, {"math": 72.37, "science": 54.49, "code": 52.60, "general": 76.83, "average": 64.07}),
    "post_sft": (M_LMQ_SFT, {"math": 64.67, "science": 53.74, "four_domains": 50.95, "nine_benchmarks": 56.14}),
    "post_rl": (M_LMQ_RL, {"eight_benchmarks": 56.66}),
}


def result(name: str, value: float) -> TaskResult:
    return TaskResult(
        task=name,
        kind="external",
        name=name,
        headline="acc",
        metrics=(Metric(name="acc", value=value / 100, n=1),),
        items=1,
        seed=0,
        contamination=Contamination(status="unknown"),
    )


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_a_shipped_suite_is_read(name: str) -> None:
    assert read_suite(FOLDER / f"{name}.yaml").tasks


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_suite_makes_the_averages_of_the_papers_table(name: str) -> None:
    numbers, averages = SHIPPED[name]
    suite = read_suite(FOLDER / f"{name}.yaml")
    found = {one.name: one.value for one in suite.aggregate([result(*pair) for pair in numbers.items()])}
    for average, printed in averages.items():
        assert 100 * (found[average] or 0) == pytest.approx(printed, abs=ROUNDING), average


def test_a_mean_that_misses_a_task_has_no_value_and_names_it() -> None:
    suite = read_suite(FOLDER / "post_rl.yaml")
    (mean,) = suite.aggregate([result(name, 50.0) for name in M_LMQ_RL if name != "gsm8k"])
    assert mean.value is None
    assert mean.missing == ("gsm8k",)


def test_aime_is_asked_16_times_and_the_rest_4_times() -> None:
    from megatron_ext.evaluate.options import Options

    for name in ("post_sft", "post_rl"):
        suite = read_suite(FOLDER / f"{name}.yaml")
        asked = {one.name: one.options.samples for one in suite.requests(Options(**suite.options))}
        assert {asked.pop("aime24"), asked.pop("aime25")} == {16}
        assert set(asked.values()) == {4}


def test_validate_takes_suites_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(FOLDER / "base.yaml")]) == 0
    assert "base.yaml: ok: suite front_loading_base, 12 tasks, 5 means" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "aggregates: [{name: m, mean_of: [a, c]}]",
            "aggregates: m: mean_of: c: no task, and no mean above; there are a",
        ),
        ("aggregates: [{name: m, mean_of: []}]", "aggregates: m: mean_of: nothing: no task"),
        ("aggregates: [{name: a, mean_of: [a]}]", "aggregates: a: is the name of a task or another mean"),
        ("options: {temprature: 1}", "options: temprature: no such option; did you mean temperature"),
        ("colour: red", "colour: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_suite_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(f"suite: s\ntasks: [{{task: 'external:a'}}]\n{text}\n")
    with pytest.raises(RecipeError) as caught:
        read_suite(file)
    assert str(caught.value).startswith(f"{file}: {said}")
