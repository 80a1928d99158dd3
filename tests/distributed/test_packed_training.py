"""Packed documents train alike in every layout and behind a resume, and the ledger of the run counts its padding.

Tolerance 1e-5 relative over 10 steps in fp32, as for whole rows: layouts add the same numbers in another order.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.toy_project import Run, ToyProject

PACKED = "data={packing: best_fit, document_isolation: full}"  # documents of 65 to 104 tokens, rows of 64
TRUNCATED = ("data.long_documents=truncate", "training.sequence_length=96", "budget.tokens=7_680")
TP2 = "parallel.tensor_model_parallel_size=2"


def run_of(project: ToyProject, run_root: Path, *keys: str, processes: int | None = None) -> Run:
    run = project.run(run_root, PACKED, *keys, processes=processes)
    assert run.code == 0, run.output
    return run


@pytest.fixture(scope="module")
def single(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(toy_project, tmp_path_factory.mktemp("packed"))


@pytest.mark.parametrize(("name", "key"), [("dp2", "parallel.use_distributed_optimizer=true"), ("tp2", TP2)])
def test_packed_documents_train_alike_on_two_ranks(
    toy_project: ToyProject, single: Run, tmp_path: Path, name: str, key: str
) -> None:
    run = run_of(toy_project, tmp_path, key, processes=2)
    assert run.stage_folder.name == single.stage_folder.name, "the layout is no part of the stage"
    assert run.losses == pytest.approx(single.losses, rel=1e-5)
    assert [line["trained_tokens"] for line in run.metrics] == [line["trained_tokens"] for line in single.metrics]


def test_a_packed_run_that_was_cut_goes_on_as_if_it_had_not_been(
    toy_project: ToyProject, single: Run, tmp_path: Path
) -> None:
    run_of(toy_project, tmp_path, "training.max_steps=4", "checkpoint.interval_tokens=1_024")
    run = run_of(toy_project, tmp_path, "checkpoint.interval_tokens=1_024")
    assert run.losses == single.losses
    ledgers = [json.loads((each.stage_folder / "stage.json").read_text())["ledger"] for each in (run, single)]
    assert ledgers[0] == ledgers[1]


def test_what_was_trained_is_what_the_ledger_leaves_of_the_rows(toy_project: ToyProject, tmp_path: Path) -> None:
    stage = json.loads((run_of(toy_project, tmp_path, *TRUNCATED).stage_folder / "stage.json").read_text())
    read, padding, masked, truncated = (
        sum(row[field] for row in stage["ledger"]) for field in ("read", "padding", "masked", "truncated")
    )
    assert read == 10 * 8 * 96
    assert padding > 0
    assert truncated > 0
    assert masked == 80, "a document a row, and its last token has no label"
    assert stage["state"]["trained_tokens"] == read - padding - masked
