"""An rl stage on one GPU over NCCL: what the sampler and the trainer see differently, at every step.

It begins with the weights of a stage pretrained on the CPU in fp32, and its updates change them. Tolerances, of the
mean |log p sampled - log p trained| of a step: fp32 sums in another order, 1e-5; `te` trains in TF32, 3e-3; bf16
1.4e-2, each as in test_rollout.py.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_ext.models.backends import BackendName
from megatron_ext.recipe.schema import Precision
from tests.gpu.models import CASES, require
from tests.support.rl_project import add_rl
from tests.support.toy_project import ToyProject

TOLERANCES = {("local", "fp32"): 1e-5, ("te", "fp32"): 3e-3}
BF16 = 1.4e-2
KEYS = ("rl.max_new_tokens=48", "rl.slots=8", "optimizer.lr=3e-3", "optimizer.min_lr=3e-3")


@dataclass(frozen=True)
class Pretrained:
    """A run root with the pretrained stage alone, and the recipe of the rl stage."""

    base: Path
    recipe: Path


@pytest.fixture(scope="module")
def pretrained(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    base = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        run = toy_project.run(base, is_launched=True)
    assert run.code == 0, run.output
    return Pretrained(base, add_rl(toy_project))


@pytest.mark.parametrize(("backend", "precision"), CASES)
def test_sampler_and_trainer_agree_at_every_step(
    toy_project: ToyProject, pretrained: Pretrained, tmp_path: Path, backend: BackendName, precision: Precision
) -> None:
    require(backend, precision)
    shutil.copytree(pretrained.base, tmp_path, dirs_exist_ok=True)
    keys = (*KEYS, f"precision={precision}", f"training.backend={backend}")
    run = toy_project.run(tmp_path, *keys, recipe=pretrained.recipe, is_launched=True)
    assert run.code == 0, run.output
    assert f"backend: {backend}" in run.output
    steps = run.metrics
    mismatches = [line["mismatch_mean"] for line in steps]
    print(f"{backend} {precision}: mismatch, mean of each step {mismatches}, largest",
          max(line["mismatch_max"] for line in steps))  # fmt: skip
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line["loss"]) for line in steps)
    assert 0 < max(mismatches) <= TOLERANCES.get((backend, precision), BF16)
