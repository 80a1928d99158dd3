"""The table of measured steps: what it says, what is refused, and how far the planner is from it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import DataError
from megatron_ext.plan.measured import MeasuredPoint, read_points, steps_of
from megatron_ext.plan.speed import FITTED, LEFT_OUT_RATIO
from tests.benchmarks.fit_speed import constants_of, memory_ratio, residuals
from tests.gpu.part import Part
from tests.gpu.points import write_points
from tests.gpu.report import write_report

PAGE = (Path(__file__).parents[3] / "docs/reference/benchmarks.md").read_text()
MODEL_PAGE = (Path(__file__).parents[3] / "docs/explanation/cost-model.md").read_text()
POINTS = read_points()
GOOD: dict[str, Any] = json.loads(POINTS[0].model_dump_json())


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_every_number_stands_on_the_page_that_a_point_cites(point: MeasuredPoint) -> None:
    assert point.source.startswith("docs/reference/benchmarks.md#")
    for milliseconds in filter(None, (point.step_ms, point.busy_ms)):
        assert f"{milliseconds:g}" in PAGE
    assert point.peak_memory is not None
    assert f"{point.peak_memory / 1e9:.2f}" in PAGE
    assert point.commit in PAGE
    assert all(point.versions[package] in PAGE for package in ("mamba-ssm", "causal-conv1d", "transformer-engine"))


def test_tokens_are_rows_by_length_over_the_time() -> None:
    rates = {point.name: point.tokens_per_s for point in steps_of(POINTS)}
    assert rates["h200-te-1b"] == pytest.approx(8192 / 0.1545)
    assert {name: float(f"{rate:.3g}") for name, rate in rates.items() if rate} == {
        "h200-te-130m": 186_000,
        "h200-local-130m": 145_000,
        "h200-te-1b": 53_000,
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"speed": 1}, "speed: Extra inputs are not permitted"),
        ({"step_ms": -1.0}, "step_ms: Input should be greater than 0"),
        ({"step_ms": math.nan}, "step_ms: Input should be a finite number"),
        ({"gpu": "b9"}, "gpu: Input should be 'a100', 'h100' or 'h200'"),
        ({"rows": "8"}, "rows: Input should be a valid integer"),
        ({"date": "yesterday"}, "date: String should match pattern"),
        ({"source": ""}, "source: String should have at least 1 character"),
        ({"kinds_ms": {"norms": 1.0}}, "kinds_ms.norms.[key]: Input should be 'products', 'ssd' or 'rest'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_malformed_point_is_refused_with_its_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"name": "other"} | change) + "\n")
    with pytest.raises(DataError) as caught:
        read_points(file)
    assert str(caught.value).startswith(f"{file}:2: {said}")


def test_what_is_no_point_and_what_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    for text, said in (
        ("{\n", ":1: no JSON object"),
        ("[1]\n", ":1: no JSON object"),
        (2 * f"{json.dumps(GOOD)}\n", ": name: h200-te-130m stands there twice"),
    ):
        file.write_text(text)
        with pytest.raises(DataError) as caught:
            read_points(file)
        assert str(caught.value).startswith(f"{file}{said}")
    with pytest.raises(DataError, match="No such file"):
        read_points(tmp_path / "nowhere")


def test_a_point_without_a_package_gives_no_step(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    file.write_text(json.dumps(GOOD | {"without": ["causal-conv1d"]}))
    assert read_points(file)
    assert not steps_of(read_points(file))


def test_the_steps_of_a_gpu_check_are_points(tmp_path: Path) -> None:
    """Of a benchmark's facts, with its kernels' shares of 60 ms; what several GPUs or packed rows took is none."""
    step = {"mfu": 0.2, "backend": "te", "model": "hybrid_130m", "rows": 8, "sequence_length": 2048, "steps": 20}
    step |= {"precision": "bf16", "step_ms": 88.3, "matmul_peak_tflops": 766.0, "peak_memory": 12_150_000_000}
    step |= {"cross_entropy": "core", "layers": "te", "tokens_per_s": 186_000.0, "planned_memory": 12_000_000_000}
    shares = {"matrix products": 0.3, "ssd": 0.2, "attention": 0.05, "other": 0.45}
    machine = {"gpus": ["NVIDIA H200, 139 GiB, sm 9.0"], "date": "2026-11-27T10:00+00:00", "code_sha256": "a" * 64}
    machine |= {"versions": {"mamba-ssm": "2.3.2", "causal-conv1d": "not installed"}}
    machine |= {"cpu": "cpu", "cuda_of_torch": "13.0", "missing": []}
    parts = [
        Part("benchmark te", "passed", facts=step | {"kernels": {"busy_ms": 60.0, "shares": shares}}),
        Part("benchmark 8", "passed", facts=step | {"gpus": 8}),
        Part("benchmark packed", "passed", facts=step | {"document_tokens": 512}),
        Part("kernels", "passed", facts={"passed": 3}),
    ]
    write_report(tmp_path, machine, parts)
    (point,) = read_points(tmp_path / "points.jsonl")
    assert point.kinds_ms == pytest.approx({"products": 18.0, "ssd": 12.0, "rest": 27.0})
    assert (point.gpu, point.step_ms, point.busy_ms, point.date) == ("h200", 88.3, 60.0, "2026-11-27")
    assert (point.without, point.cross_entropy) == (["causal-conv1d"], "core")
    write_points(tmp_path / "nowhere", machine | {"gpus": ["Another, 8 GiB, sm 7.5"]}, parts)  # writes nothing


def test_the_constants_are_the_fit_to_the_table() -> None:
    fitted = constants_of(POINTS)
    assert fitted.products == pytest.approx(FITTED.products, rel=2e-3)
    assert fitted.ssd == pytest.approx(FITTED.ssd, rel=2e-3)
    assert fitted.moved == pytest.approx(FITTED.moved, rel=2e-3)
    assert fitted.host_ms == pytest.approx(FITTED.host_ms, rel=2e-3)


def test_the_residuals_are_those_of_the_page() -> None:
    for equation, error, left_out in residuals(POINTS):
        shown = "not told" if math.isnan(left_out) else f"{left_out:+.1%}"
        assert (
            f"| `{equation.point}` | {equation.what} | {equation.measured:g} | {error:+.1%} | {shown} |" in MODEL_PAGE
        )


def test_the_stated_error_is_the_largest_of_a_point_left_out() -> None:
    told = [abs(left_out) for *_, left_out in residuals(POINTS) if not math.isnan(left_out)]
    assert max(told) == pytest.approx(LEFT_OUT_RATIO, abs=5e-4)


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_planned_memory_is_within_three_hundredths_of_what_a_step_took(point: MeasuredPoint) -> None:
    """The point before the fused norms took less: their copy of the scan's output is planned since."""
    low, high = (0.97, 1.0) if point.name == "h200-local-130m" else (1.0, 1.02)
    assert low <= memory_ratio(point) <= high
