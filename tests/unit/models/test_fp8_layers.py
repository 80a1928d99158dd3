"""Products in fp8 are those of the linear layers inside the stack, and of no layer at its ends that stays in bf16."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.toy_project import report_of


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report_of("tests.support.fp8_on_cpu", tmp_path_factory.mktemp("fp8") / "report.json", timeout_s=240)


def test_inner_layers_are_in_fp8_edges_and_output_layer_are_not(report: dict[str, Any]) -> None:
    assert report["tensorwise"]["with"] == {
        "decoder.layers.0.mixer.in_proj": None,
        "decoder.layers.0.mixer.out_proj": None,
        "decoder.layers.1.mlp.linear_fc1": "Float8CurrentScaling hybrid",
        "decoder.layers.1.mlp.linear_fc2": "Float8CurrentScaling hybrid",
        "decoder.layers.2.self_attention.linear_qkv": "Float8CurrentScaling hybrid",
        "decoder.layers.2.self_attention.linear_proj": "Float8CurrentScaling hybrid",
        "decoder.layers.3.mixer.in_proj": None,
        "decoder.layers.3.mixer.out_proj": None,
        "output_layer": None,
    }


def test_without_edges_mamba_layers_are_in_fp8_too(report: dict[str, Any]) -> None:
    contexts = report["blockwise"]["with"]
    assert contexts.pop("output_layer") is None
    assert set(contexts.values()) == {"Float8BlockScaling e4m3"}
    assert "decoder.layers.0.mixer.in_proj" in contexts


@pytest.mark.parametrize("case", ["tensorwise", "blockwise"])
def test_fp8_can_be_taken_away_for_the_proof_of_isolation(report: dict[str, Any], case: str) -> None:
    assert report[case]["without"] == ["None"]
    assert report[case]["restored"] == {"tensorwise": "hybrid", "blockwise": "e4m3"}[case]


def test_weights_are_cast_anew_in_the_first_microbatch_of_a_step(report: dict[str, Any]) -> None:
    assert report["tensorwise"]["casts"] == [["False", "None"], ["None", "True"]]  # None: the output layer
