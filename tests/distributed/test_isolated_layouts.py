"""Documents are kept apart in every layout alike: the same losses as one process, step by step.

Tolerance 1e-5 relative over 10 steps in fp32, as for whole rows: layouts add the same numbers in another order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.toy_project import Run, ToyProject

FULL, ATTENTION = "data.document_isolation=full", "data.document_isolation=attention"
TP2, SP = "parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
LAYOUTS: dict[str, Any] = {
    "dp2": (2,),
    "tp2": (2, TP2),
    "tp2-sequence-parallel": (2, TP2, SP),
    "pp2": (2, PP2),
    "pp2-one-row-a-microbatch": (2, PP2, "training.micro_batch_size=1"),
    "recomputed": (None, "training.recompute=full"),
    "attention-recomputed": (None, "training={recompute: selective, recompute_modules: [core_attn]}"),
}
"""Processes and the keys that place them."""


def run_of(project: ToyProject, run_root: Path, *keys: str, processes: int | None = None) -> Run:
    run = project.run(run_root, *keys, processes=processes)
    assert run.code == 0, run.output
    return run


@pytest.fixture(scope="module")
def single(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(toy_project, tmp_path_factory.mktemp("full"), FULL)


@pytest.mark.parametrize("name", LAYOUTS)
def test_isolated_documents_train_alike_in_every_layout(
    toy_project: ToyProject, single: Run, tmp_path: Path, name: str
) -> None:
    processes, *keys = LAYOUTS[name]
    run = run_of(toy_project, tmp_path, FULL, *keys, processes=processes)
    assert run.stage_folder.name == single.stage_folder.name, "the layout is no part of the stage"
    assert "isolation holds: 4 documents in 64 tokens" in run.output
    assert run.losses == pytest.approx(single.losses, rel=1e-5)
    for line, expected in zip(run.metrics, single.metrics, strict=True):
        assert line["validation"] == pytest.approx(expected["validation"], rel=1e-5)


def test_what_is_isolated_decides_the_stage_and_its_losses(
    toy_project: ToyProject, single: Run, tmp_path: Path
) -> None:
    attention, none = (
        run_of(toy_project, tmp_path / name, f"data.document_isolation={name}") for name in ("attention", "none")
    )
    assert len({run.stage_folder.name for run in (single, attention, none)}) == 3
    for first, second in ((single, attention), (single, none), (attention, none)):
        assert abs(first.losses[0] - second.losses[0]) > 1e-6, "the first loss is of the same weights and tokens"
        assert first.metrics[-1]["validation"] != second.metrics[-1]["validation"]
