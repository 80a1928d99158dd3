"""The stock hybrid spec and ours are one model: same weights from a seed, same checkpoints, same maths.

Core's own `hybrid_stack_spec` is built and run on the CPU, on stand-ins for Transformer Engine and mamba-ssm
(tests/support/extensions_on_cpu.py) in plain torch. Tolerances, float32: logits up to 3.2 within 1e-5 (measured
2e-6), gradients within 1e-6 (measured 2e-7), the kernels' calls within 1e-5 of the largest value
(measured 2e-6): the same sums in another order.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.toy_project import REPOSITORY, report_of

RECORD = REPOSITORY / "tests" / "data" / "stock_hybrid_keys.json"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report_of("tests.support.stock_spec", tmp_path_factory.mktemp("stock") / "report.json", timeout_s=120)


def test_both_have_the_recorded_keys_shapes_and_cuts(report: dict[str, Any]) -> None:
    recorded = json.loads(RECORD.read_text())
    assert report["keys"] == {"local": recorded, "te": recorded}


def test_one_seed_gives_both_the_same_weights(report: dict[str, Any]) -> None:
    assert (report["same_names"], report["same_weights"]) == (True, True)


def test_logits_and_gradients_agree(report: dict[str, Any]) -> None:
    assert report["logits"] < 1e-5
    assert report["gradients"] < 1e-6


@pytest.mark.parametrize("direction", ["te_to_local", "local_to_te"])
def test_a_checkpoint_of_one_loads_into_the_other(report: dict[str, Any], direction: str) -> None:
    assert report[direction] < 1e-5


@pytest.mark.parametrize("kernel", ["ssd", "ssd_gradients", "conv", "conv_gradients", "ssd_step", "conv_step"])
def test_the_kernels_are_called_as_the_torch_code(report: dict[str, Any], kernel: str) -> None:
    assert report["kernels"][kernel] < 1e-5
