"""A model with Transformer Engine's layers samples through a twin of ours that has its very parameters.

Core's stock layers run on the CPU, on stand-ins for Transformer Engine and mamba-ssm
(tests/support/extensions_on_cpu.py); tests/gpu has the packages themselves. Tolerances: logits up to 3.5 in float32
within 1e-5 (measured 2e-6), the same sums in another order. A stage's mean |log p sampled - log p trained| within 1e-6
in fp32 (measured 3e-7), within 5e-3 in bf16 (measured 1.2e-3), where the two round in other places.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.toy_project import report_of

PROGRAM = "tests.support.te_sampling"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report_of(PROGRAM, tmp_path_factory.mktemp("twin") / "report.json", timeout_s=240)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report_of(PROGRAM, tmp_path_factory.mktemp("stages") / "report.json", "stages", timeout_s=400)


@pytest.mark.parametrize("shape", ["plain", "tied"])
def test_cached_logits_are_the_whole_texts_also_when_the_weights_have_changed_and_moved(
    report: dict[str, Any], shape: str
) -> None:
    facts = report["twin"][shape]
    assert max(facts["distances"]) < 1e-5
    before, after = facts["logits"]
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 1e-2


@pytest.mark.parametrize("shape", ["plain", "tied"])
def test_the_twin_has_the_models_own_parameters(report: dict[str, Any], shape: str) -> None:
    assert report["twin"][shape]["same objects"]


@pytest.mark.parametrize("layout", ["tp2", "tp2 sp", "dp2"])
def test_a_layout_samples_what_one_process_samples(report: dict[str, Any], layout: str) -> None:
    assert len(report["layouts"]["one"]) == 10
    assert report["layouts"][layout] == report["layouts"]["one"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "largest"), [("fp32", 1e-6), ("bf16", 5e-3), ("tp2, sharded", 1e-6)])
def test_a_stage_samples_with_the_weights_of_every_update(stages: dict[str, Any], name: str, largest: float) -> None:
    stage = stages[name]
    assert stage["code"] == 0, stage["output"]
    assert "backend: te" in stage["output"]
    assert [line["step"] for line in stage["metrics"]] == [1, 2, 3, 4, 5, 6]
    assert 0 < max(line["mismatch_mean"] for line in stage["metrics"]) < largest
