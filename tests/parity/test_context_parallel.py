"""Ranks that share a sequence train as one rank that has it all: the same losses, gradients, ledgers, checkpoints.

Core's own layers and its Mamba-2 mixer run, with its all-to-all over gloo, on stand-ins for Transformer Engine and
mamba-ssm (tests/support/{extensions,attention}_on_cpu.py). What only GPUs can show, those packages' own context
parallelism, stays open. Tolerances, float32: losses, held-out losses and norms of 5 steps within 1e-5 of their value
(measured 4e-6, norms of Mamba-2 and attention; losses 1e-7), gradients of one step within 1e-5 of each tensor's
largest value (measured 2e-6): the same sums in another order.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.toy_project import report_of

PROGRAM = "tests.support.context_runs"
OTHERS = ["cp2-sharded", "cp2-dp2", "tp2-cp2", "tp2-sequence-parallel-cp2", "pp2-cp2"]
STAGES = ["pretrain", "sft", "sft-sample-by-conversation"]
UNLIKE = {"tokens_per_s", "save_s"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("context") / "report.json"
    return report_of(PROGRAM, file, "one", "cp2", "gradients", "isolation", timeout_s=400)


def require_same(run: dict[str, Any], single: dict[str, Any]) -> None:
    assert run["id"] == single["id"], "the layout is no part of the stage"
    assert run["ledger"] == single["ledger"]
    assert len(run["metrics"]) == len(single["metrics"])
    for line, expected in zip(run["metrics"], single["metrics"], strict=True):
        assert line.keys() == expected.keys()
        for name in line.keys() - UNLIKE:
            same = expected[name] if isinstance(expected[name], str) else pytest.approx(expected[name], rel=1e-5)
            assert line[name] == same, name


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_that_share_each_row_train_as_one(report: dict[str, Any], stage: str) -> None:
    require_same(report["cp2"][stage], report["one"][stage])


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_gradients_are_those_of_one_rank(report: dict[str, Any], stage: str) -> None:
    assert report["gradients"][stage]["report"] < 1e-6
    assert report["gradients"][stage]["gradients"] < 1e-5


def test_the_layers_are_proved_before_they_train_on_shared_rows(report: dict[str, Any]) -> None:
    for stage in STAGES:
        assert "isolation holds: 4 documents in 32 tokens" in report["cp2"][stage]["output"]
    assert "isolation" not in report["one"]["pretrain"]["output"]


@pytest.mark.parametrize("damage", ["a document too few", "the index of a rank's part", "a row cut otherwise"])
def test_the_proof_refuses_ranks_whose_layers_take_their_tokens_for_others(report: dict[str, Any], damage: str) -> None:
    assert report["isolation"]["none"] == [True, True]
    assert report["isolation"][damage] == [False, False]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("many") / "report.json"
    return report_of(PROGRAM, file, "one", "local", *OTHERS, "resumed", timeout_s=1200)


@pytest.mark.slow
@pytest.mark.parametrize("layout", OTHERS)
@pytest.mark.parametrize("stage", STAGES)
def test_shared_rows_go_with_every_other_kind_of_parallelism(many: dict[str, Any], stage: str, layout: str) -> None:
    require_same(many[layout][stage], many["one"][stage])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_stock_layers_train_packed_rows_as_the_local_ones(many: dict[str, Any], stage: str) -> None:
    require_same(many["one"][stage], many["local"][stage])


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["one to cp2", "cp2 to one"])
def test_a_run_goes_on_with_another_number_of_ranks_a_row(many: dict[str, Any], direction: str) -> None:
    losses = [line["loss"] for line in many["one"]["pretrain"]["metrics"]]
    assert many["resumed"][direction] == pytest.approx(losses, rel=1e-5)
