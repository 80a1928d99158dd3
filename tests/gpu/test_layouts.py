"""Every layout over NCCL trains as one GPU does: the toy recipe's ten losses, and checkpoints resumed by one GPU.

Tolerances are those of test_training.py: fp32 sums in another order, 1e-3 after ten steps of AdamW; bf16, 5e-2.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ext.runtime.extensions import missing_for_te
from tests.gpu.layouts import LOCAL, TE, layouts, resumed
from tests.support.toy_project import Run, ToyProject

GPUS = int(os.environ.get("GPU_CHECK_GPUS", "1"))
ALLOWED = {"local": 1e-3, "te": 5e-2}
NONE = [pytest.param("none", marks=pytest.mark.skip("not run: one GPU"))]


@pytest.fixture(scope="module")
def on_one_gpu(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[float]]:
    @functools.cache
    def losses(backend: str) -> list[float]:
        if backend == "te" and missing_for_te():
            pytest.skip(f"not run: te needs {' and '.join(missing_for_te())}")
        return done(toy_project.run(tmp_path_factory.mktemp(backend), *KEYS[backend], processes=1, is_launched=True))

    return losses


KEYS = {"local": LOCAL, "te": TE}


def done(run: Run) -> list[float]:
    assert run.code == 0, run.output
    return run.losses


@pytest.mark.parametrize("name", list(layouts(GPUS)) or NONE)
def test_losses_are_those_of_one_gpu(
    toy_project: ToyProject, on_one_gpu: Callable[[str], list[float]], tmp_path: Path, name: str
) -> None:
    processes, keys = layouts(GPUS)[name]
    backend = name.split()[0]
    expected = on_one_gpu(backend)
    losses = done(toy_project.run(tmp_path, *keys, processes=processes, is_launched=True))
    assert losses == pytest.approx(expected, abs=ALLOWED[backend])


@pytest.mark.parametrize("name", resumed(GPUS) or NONE)
def test_one_gpu_goes_on_at_the_checkpoint_of_several(
    toy_project: ToyProject, on_one_gpu: Callable[[str], list[float]], tmp_path: Path, name: str
) -> None:
    processes, keys = layouts(GPUS)[name]
    backend = name.split()[0]
    expected = on_one_gpu(backend)
    done(toy_project.run(tmp_path, *keys, "training.max_steps=5", processes=processes, is_launched=True))
    rest = done(toy_project.run(tmp_path, *KEYS[backend], processes=1, is_launched=True))
    assert rest == pytest.approx(expected, abs=ALLOWED[backend])
