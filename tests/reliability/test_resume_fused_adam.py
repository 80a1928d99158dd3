"""A run that the fused Adam of Transformer Engine drives goes on bit for bit, as one of torch's AdamW does.

Three steps, a checkpoint, three more: the bias correction of the fourth update is 3.4 times that of a first one, so
a counter that begins anew shows at once. Also a checkpoint before any update, as when step 1 was skipped.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.toy_project import report_of

CASES = ("plain fp32", "plain bf16", "distributed fp32", "distributed bf16", "distributed bf16, a slice each")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report_of("tests.support.fused_adam", tmp_path_factory.mktemp("fused") / "report.json", timeout_s=150)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_undisturbed_one(report: dict[str, Any], case: str, steps: int) -> None:
    found = report[f"{case}, {steps} steps"]
    assert found["adam"] == "FusedAdam"
    assert found["updates"] == steps
    assert found["resumed"] == found["straight"]
    assert found["same_weights"]
