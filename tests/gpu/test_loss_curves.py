"""Fifty steps from one checkpoint on the CPU, on `local` and on `te`; and one run that crosses all three.

bf16 everywhere. Ten steps on two backends stay within 5e-2 (test_training.py); fifty steps of AdamW give rounding five
times as long, so 0.1 here, of losses that fall by more than 1.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.runtime.extensions import missing_for_te
from tests.support.toy_project import Run, ToyProject

FIFTY = ("budget.tokens=25_600", "precision=bf16", "checkpoint.interval_tokens=5_120")
ALLOWED = 0.1


def train(project: ToyProject, folder: Path, where: str, *keys: str) -> Run:
    """On the CPU, or on one GPU with a backend."""
    with pytest.MonkeyPatch.context() as patch:
        if where == "cpu":
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        backend = "local" if where == "cpu" else where
        run = project.run(
            folder, *FIFTY, f"training.backend={backend}", *keys, processes=1, is_launched=True, timeout_s=600
        )
    assert run.code == 0, run.output
    return run


@pytest.fixture(scope="module")
def begun(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps on the CPU: the checkpoint that all begin with."""
    return train(toy_project, tmp_path_factory.mktemp("begun"), "cpu", "training.max_steps=2")


@pytest.fixture(scope="module")
def on_cpu(toy_project: ToyProject, begun: Run, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("cpu") / "runs"
    begun.copied(folder)
    return train(toy_project, folder, "cpu").losses


@pytest.mark.parametrize("backend", ["local", "te"])
def test_fifty_losses_are_the_cpus(
    toy_project: ToyProject, begun: Run, on_cpu: list[float], tmp_path: Path, backend: str
) -> None:
    if backend == "te" and missing_for_te():
        pytest.skip(f"not run: te needs {' and '.join(missing_for_te())}")
    begun.copied(tmp_path / "runs")
    losses = train(toy_project, tmp_path / "runs", backend).losses
    print(json.dumps({"backend": backend, "cpu": on_cpu, "losses": losses}))
    assert len(losses) == 50
    assert losses == pytest.approx(on_cpu, abs=ALLOWED)
    assert losses[-1] < losses[0] - 1.0


def test_one_run_crosses_all_three(toy_project: ToyProject, begun: Run, on_cpu: list[float], tmp_path: Path) -> None:
    if missing_for_te():
        pytest.skip(f"not run: te needs {' and '.join(missing_for_te())}")
    folder = tmp_path / "runs"
    begun.copied(folder)
    for where, until in (("te", 20), ("local", 35), ("cpu", 50)):
        run = train(toy_project, folder, where, *(() if until == 50 else (f"training.max_steps={until}",)))
        facts = json.loads((run.stage_folder / "checkpoints" / f"step_{until}" / "state.json").read_text())
        assert facts["backend"] == ("te" if where == "te" else "local")
    assert run.losses == pytest.approx(on_cpu, abs=ALLOWED)
