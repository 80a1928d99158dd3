"""`training.deterministic`: two runs are equal bit for bit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from megatron_ext.models.config import transformer_config
from megatron_ext.plan.stage_plan import ExecutionPlan
from megatron_ext.runtime.determinism import be_deterministic
from tests.support.distributed import run_distributed
from tests.support.plans import make_plan
from tests.support.toy_project import ToyProject, environment

SHORT = ("training.deterministic=true", "training.max_steps=4")


@pytest.mark.parametrize(
    ("processes", "overrides"),
    [(None, ("precision=bf16",)), (2, ("precision=bf16", "parallel.use_distributed_optimizer=true"))],
    ids=["bf16", "bf16-two-ranks"],
)
def test_two_deterministic_runs_are_equal_bit_for_bit(
    toy_project: ToyProject, tmp_path: Path, processes: int | None, overrides: tuple[str, ...]
) -> None:
    first, second = (toy_project.run(tmp_path / name, *SHORT, *overrides, processes=processes) for name in "ab")
    assert (first.code, second.code) == (0, 0), first.output + second.output
    for field in ("loss", "grad_norm", "validation"):
        assert [line[field] for line in first.metrics] == [line[field] for line in second.metrics]


def test_a_variable_that_undoes_it_is_refused(toy_project: ToyProject, tmp_path: Path) -> None:
    done = subprocess.run(
        toy_project.command(tmp_path, *SHORT),
        cwd=toy_project.root,
        env=environment() | {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert (
        "error: NVTE_ALLOW_NONDETERMINISTIC_ALGO=1: not deterministic, and training.deterministic is true. "
        "Unset it, set it to 0, or set training.deterministic=false." in done.stderr
    )


def deterministic_settings() -> tuple[bool, dict[str, str | None], bool]:
    """What a rank that was told to be deterministic has: torch's switch, the environment, core's switch."""
    be_deterministic()
    names = ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO", "NVTE_ALLOW_NONDETERMINISTIC_ALGO")
    plan = make_plan(execution=ExecutionPlan(deterministic=True))
    mode = transformer_config(plan).deterministic_mode
    return torch.are_deterministic_algorithms_enabled(), {name: os.environ.get(name) for name in names}, mode


def test_torch_core_and_the_libraries_are_told() -> None:
    ((torch_mode, variables, core_mode),) = run_distributed(deterministic_settings, 1)
    assert torch_mode
    assert core_mode
    assert variables == {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "NCCL_ALGO": "Ring",
        "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
    }
