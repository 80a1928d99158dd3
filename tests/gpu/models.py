"""The model of the GPU tests, its CPU reference, and who can run it.

    CUDA_VISIBLE_DEVICES= python -m tests.gpu.models FOLDER      writes checkpoint and reference.pt

Large enough for every kernel (heads of 32, states of 64, two chunks of 256 tokens), small enough for seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_ext.models.backends import BackendName
from megatron_ext.models.build import build_model
from megatron_ext.models.kernels import describe_kernels
from megatron_ext.models.weights import put_weights, sharded_weights
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.schema import Precision
from megatron_ext.runtime.device import device
from megatron_ext.runtime.extensions import missing_for_te
from tests.support.one_process import one_process, random_tokens, strengthen
from tests.support.plans import make_plan
from tests.support.toy_project import REPOSITORY, environment

MODEL: dict[str, Any] = {
    "hybrid_layer_pattern": "M-*M",
    "hidden_size": 128,
    "ffn_hidden_size": 256,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 32,
    "mamba_num_heads": 8,
    "mamba_head_dim": 32,
    "mamba_state_dim": 64,
    "mamba_num_groups": 2,
}
LENGTH = 300
CASES: list[tuple[BackendName, Precision]] = [("local", "fp32"), ("local", "bf16"), ("te", "fp32"), ("te", "bf16")]


def require(backend: BackendName, precision: Precision) -> None:
    """Skips a test whose backend is not whole here."""
    if backend == "te" and missing_for_te():
        pytest.skip(f"not run: te needs {' and '.join(missing_for_te())}")
    if backend == "local" and precision == "bf16" and "mamba-ssm" not in describe_kernels("bf16").split(":")[0]:
        pytest.skip("not run: mamba-ssm's kernels are not importable")


def plan_of(precision: str, **model: Any) -> StagePlan:
    return make_plan(model=MODEL | model, precision=precision, data={"eod_id": 127})


def loaded(
    groups: ProcessGroupCollection, folder: Path, *, backend: BackendName, precision: str = "fp32"
) -> HybridModel:
    """A model with the weights of the CPU's checkpoint, in the precision of the forward pass."""
    model = build_model(plan_of("fp32"), groups, backend=backend)
    put_weights(model, dist_checkpointing.load({"model": sharded_weights(model, groups)}, str(folder))["model"])
    if precision == "fp32":
        return model
    half = build_model(plan_of(precision), groups, backend=backend)
    with torch.no_grad():
        for target, source in zip(half.parameters(), model.parameters(), strict=True):
            target.copy_(source)
    return half.bfloat16()  # as Float16Module does


def logits_and_loss(model: HybridModel, tokens: Tensor) -> tuple[Tensor, float]:
    """Logits [b, s, vocabulary] and the mean loss of tokens [b, s + 1], both float32 on the CPU."""
    tokens = tokens.to(device())
    positions = torch.arange(tokens.shape[1] - 1, device=device()).expand(tokens.shape[0], -1)
    with torch.no_grad():
        logits = model(tokens[:, :-1], positions, None)
        losses = model(tokens[:, :-1], positions, None, labels=tokens[:, 1:])
    return logits.float().cpu(), float(losses.float().mean())


def tokens_of_the_test() -> Tensor:
    return random_tokens(2, LENGTH + 1)


def make_reference(folder: Path) -> None:
    """Runs this file as a program where no GPU is visible."""
    subprocess.run(
        [sys.executable, "-m", "tests.gpu.models", str(folder)],
        cwd=REPOSITORY,
        env=environment() | {"CUDA_VISIBLE_DEVICES": ""},
        check=True,
        timeout=120,
    )


def main() -> None:
    folder = Path(sys.argv[1])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "the reference is the CPU's"
    with one_process() as groups:
        model = strengthen(build_model(plan_of("fp32"), groups, backend="local"), 4.0)
        (folder / "weights").mkdir()
        dist_checkpointing.save({"model": sharded_weights(model, groups)}, str(folder / "weights"))
        torch.save(logits_and_loss(model, tokens_of_the_test()), folder / "reference.pt")


if __name__ == "__main__":
    main()
