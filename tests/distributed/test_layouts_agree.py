"""Every layout trains the same model: same losses, step by step, from the same recipe.

Tolerance 1e-5 relative over 10 steps in fp32: layouts add the same numbers in another order. Weights
come from native initialisation, which draws every parameter by its global name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_ext.runtime.device import has_gpu
from tests.support.toy_project import Run, ToyProject

TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
SHARDED = "parallel.use_distributed_optimizer=true"
OVERLAPPED = ("parallel.overlap_grad_reduce=true", "training.micro_batch_size=2")
GATHERED = (SHARDED, *OVERLAPPED, "parallel.overlap_param_gather=true")
LAYOUTS: dict[str, Any] = {
    "dp2": (2, "training.micro_batch_size=2"),  # half of the one process's: two microbatches a rank
    "dp2-distributed-optimizer": (2, SHARDED),
    "dp2-overlap": (2, *OVERLAPPED),
    "dp2-distributed-optimizer-overlap": (2, *GATHERED),
    "tp2": (2, TP2),
    "tp2-sequence-parallel": (2, TP2, SP),
    "pp2": (2, PP2, "training.micro_batch_size=2"),  # four microbatches, more than stages
    "tp2-sequence-parallel-pp2": (4, TP2, SP, PP2),
    "tp2-dp2-distributed-optimizer": (4, TP2, SHARDED),
}
"""Processes and the keys that place them."""
TIED = ("model.share_embeddings_and_output_weights=true", "model.position_embedding_type=rope")
"""Tied embeddings have a gradient reduction of their own between the first and the last pipeline stage."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_many_ranks_train_like_one(toy_project: ToyProject, toy_run: Run, tmp_path: Path, name: str) -> None:
    processes, *keys = LAYOUTS[name]
    run = toy_project.run(tmp_path, *keys, processes=processes, is_launched=name == "dp2")
    assert run.code == 0, run.output
    assert run.stage_folder.name == toy_run.stage_folder.name, "the layout is no part of the stage"
    assert has_gpu() or "CUDA_DEVICE_MAX_CONNECTIONS" not in run.output, "advice for GPUs where there is none"
    assert len(run.losses) == 10
    assert run.losses == pytest.approx(toy_run.losses, rel=1e-5)
    assert [line["grad_norm"] for line in run.metrics] == pytest.approx(
        [line["grad_norm"] for line in toy_run.metrics], rel=1e-4
    )
    for line, expected in zip(run.metrics, toy_run.metrics, strict=True):
        assert line["validation"] == pytest.approx(expected["validation"], rel=1e-5)


@pytest.fixture(scope="module")
def single_tied(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = toy_project.run(tmp_path_factory.mktemp("tied"), *TIED)
    assert run.code == 0, run.output
    return run


@pytest.mark.parametrize("name", ["tp2-sequence-parallel", "pp2"])
def test_tied_embeddings_and_rope_train_like_one(
    toy_project: ToyProject, single_tied: Run, tmp_path: Path, name: str
) -> None:
    processes, *keys = LAYOUTS[name]
    run = toy_project.run(tmp_path, *TIED, *keys, processes=processes)
    assert run.code == 0, run.output
    assert run.losses == pytest.approx(single_tied.losses, rel=1e-5)


def test_the_loss_falls(toy_run: Run) -> None:
    assert toy_run.losses[0] == pytest.approx(6.93, abs=0.1)  # ln 1024, the padded vocabulary: it knows nothing yet
    assert toy_run.losses[-1] < toy_run.losses[0] - 1.0
