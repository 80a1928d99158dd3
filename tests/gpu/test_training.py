"""The toy recipe on one GPU over NCCL, through `megatron_ext.run` itself.

Tolerances on losses (5.9 falling to about 5): fp32 on the GPU sums in another order than the CPU, 1e-3 after
ten steps of AdamW; bf16 rounds every product to 8 bits, 5e-2. A resumed run repeats the uninterrupted one
but for atomic additions in embedding gradients: 1e-4.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.runtime.extensions import missing_for_te
from tests.support.toy_project import Run, ToyProject


def finish(run: Run) -> list[float]:
    assert run.code == 0, run.output
    return run.losses


@pytest.fixture(scope="module")
def on_cpu(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return finish(toy_project.run(tmp_path_factory.mktemp("cpu"), is_launched=True))


def test_fp32_losses_are_the_cpus(toy_project: ToyProject, on_cpu: list[float], tmp_path: Path) -> None:
    run = toy_project.run(tmp_path, "training.backend=local", is_launched=True)
    assert finish(run) == pytest.approx(on_cpu, abs=1e-3)
    assert "Mamba-2 layers: plain torch on the GPU" in run.output


@pytest.mark.parametrize("backend", ["local", "te"])
def test_bf16_losses_fall_as_in_fp32(
    toy_project: ToyProject, on_cpu: list[float], tmp_path: Path, backend: str
) -> None:
    if backend == "te" and missing_for_te():
        pytest.skip(f"not run: te needs {' and '.join(missing_for_te())}")
    run = toy_project.run(tmp_path, "precision=bf16", f"training.backend={backend}", is_launched=True)
    losses = finish(run)
    assert losses == pytest.approx(on_cpu, abs=5e-2)
    assert losses[-1] < losses[0] - 0.2
    assert f"backend: {backend}" in run.output


def test_a_stopped_run_goes_on_where_it_was(toy_project: ToyProject, tmp_path: Path) -> None:
    whole = finish(toy_project.run(tmp_path / "whole", "precision=bf16", processes=1, is_launched=True))
    cut = ("precision=bf16", "training.max_steps=5")
    finish(toy_project.run(tmp_path / "cut", *cut, processes=1, is_launched=True))
    resumed = toy_project.run(tmp_path / "cut", "precision=bf16", processes=1, is_launched=True)
    assert finish(resumed) == pytest.approx(whole, abs=1e-4)
    facts = json.loads((resumed.stage_folder / "checkpoints" / "step_10" / "state.json").read_text())
    assert facts["backend"] == ("local" if missing_for_te() else "te")
