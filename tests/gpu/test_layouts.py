"""Every layout over NCCL trains as one GPU does: the toy recipe's ten losses, its checkpoint resumed by one GPU.

Tolerances are those of test_training.py: fp32 sums in another order, 1e-3 after ten steps of AdamW; bf16, 5e-2.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_ext.runtime.extensions import missing_for_te
from tests.gpu.layouts import LOCAL, TE, layouts
from tests.support.toy_project import Run, ToyProject

GPUS = int(os.environ.get("GPU_CHECK_GPUS", "1"))
ALLOWED = {"local": 1e-3, "te": 5e-2}


@pytest.fixture(scope="module")
def on_one_gpu(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    keys = {"local": LOCAL} | ({} if missing_for_te() else {"te": TE})
    runs = {
        backend: toy_project.run(tmp_path_factory.mktemp(backend), *keys, processes=1, is_launched=True)
        for backend, keys in keys.items()
    }
    assert all(run.code == 0 for run in runs.values()), "\n".join(run.output for run in runs.values())
    return runs


@pytest.mark.parametrize("name", layouts(GPUS) or [pytest.param("none", marks=pytest.mark.skip("not run: one GPU"))])
def test_losses_are_those_of_one_gpu(
    toy_project: ToyProject, on_one_gpu: dict[str, Run], tmp_path: Path, name: str
) -> None:
    processes, keys = layouts(GPUS)[name]
    backend = name.split()[0]
    if backend not in on_one_gpu:
        pytest.skip(f"not run: te needs {' and '.join(missing_for_te())}")
    run = toy_project.run(tmp_path, *keys, processes=processes, is_launched=True)
    assert run.code == 0, run.output
    assert run.losses == pytest.approx(on_one_gpu[backend].losses, abs=ALLOWED[backend])
    cut = toy_project.run(tmp_path / "cut", *keys, "training.max_steps=5", processes=processes, is_launched=True)
    alone = (*(LOCAL if backend == "local" else TE),)
    rest = toy_project.run(tmp_path / "cut", *alone, processes=1, is_launched=True)
    assert (cut.code, rest.code) == (0, 0), cut.output + rest.output
    assert rest.losses == pytest.approx(on_one_gpu[backend].losses, abs=ALLOWED[backend])
