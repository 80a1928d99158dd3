# ruff: noqa: E402 (the stand-ins must be there before core is imported)
"""Trains, saves and resumes with a fused Adam, as core does where Transformer Engine is; run as a program.

    python -m tests.support.fused_adam REPORT.json

`FusedAdam` stands in for Transformer Engine's: its counter stands in the parameter group and is made by the first
`step()`, and its `load_state_dict` knows its own states only. It is a process of its own because core decides at
import whose Adam it drives.

Source: transformer_engine 2.x, `pytorch/optimizers/fused_adam.py` (`step`, `load_state_dict`, `name_to_dtype_map`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # core's squared_relu is compiled; a CPU may have no compiler

import torch

from tests.support import extensions_on_cpu


class FusedAdam(torch.optim.Optimizer):
    """AdamW in plain torch with the counter where the fused kernels have it."""

    def __init__(self, params: Any, lr: float, betas: Any, eps: float, weight_decay: float, **_: Any) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.name_to_dtype_map = dict.fromkeys(("exp_avg", "exp_avg_sq", "master_param"), torch.float32)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group["step"] + 1 if "step" in group else 1
            (beta1, beta2), number = group["betas"], group["step"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if len(state) == 0:
                    state.update(exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
                state["exp_avg"].mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                root = (state["exp_avg_sq"] / (1 - beta2**number)).sqrt() + group["eps"]
                parameter.sub_(group["lr"] * (state["exp_avg"] / (1 - beta1**number)) / root)

    def load_state_dict(self, state_dict: Any) -> None:
        """Takes the states it knows; a KeyError names another, as in the original."""
        super().load_state_dict(state_dict)
        for states in state_dict["state"].values():
            assert all(value.dtype == self.name_to_dtype_map[name] for name, value in states.items())


extensions_on_cpu.install()
del sys.modules["transformer_engine_torch"]  # with compiled kernels about, torch's Adam would be put back on a CPU
extensions_on_cpu._module("transformer_engine.pytorch.optimizers", FusedAdam=FusedAdam, FusedSGD=torch.optim.SGD)

from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.checkpoint import load_checkpoint
from megatron_ext.training.checkpoint_facts import read_facts
from megatron_ext.training.optimizer_state import OptimizerFormat
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.saving import CheckpointWrite
from megatron_ext.training.state import TrainState
from megatron_ext.training.step import train_step
from tests.support.one_process import one_process
from tests.support.sources import plan_reading, write_source, write_tokenizer

CASES: dict[str, tuple[str, OptimizerFormat | None]] = {
    "plain fp32": ("fp32", None),
    "plain bf16": ("bf16", None),
    "distributed fp32": ("fp32", "fully_reshardable"),
    "distributed bf16": ("bf16", "fully_reshardable"),
    "distributed bf16, a slice each": ("bf16", "dp_reshardable"),
}
"""Precision, and the format where the distributed optimizer writes it."""


def train_and_resume(
    plan: StagePlan, groups: ProcessGroupCollection, folder: Path, written_as: OptimizerFormat, *, steps: int
) -> dict[str, Any]:
    """Trains, saves, and goes on for three steps, in the same parts and in others that loaded the checkpoint."""
    parts, state = make_parts(plan, groups), TrainState()
    for _ in range(steps):
        state = state.advance(train_step(parts, lr=0.01, step=state.step + 1))
    path = CheckpointWrite(folder, parts, state, optimizer_format=written_as).finish()
    resumed = make_parts(plan, groups)
    load_checkpoint(path, resumed)
    return {
        "adam": type(parts.optimizer.chained_optimizers[0].optimizer).__name__,
        "updates": read_facts(path)["optimizer"]["updates"],
        "straight": losses_of_three_steps(parts),
        "resumed": losses_of_three_steps(resumed),
        "same_weights": all(map(torch.equal, parts.model.parameters(), resumed.model.parameters())),
    }


def losses_of_three_steps(parts: Parts) -> list[float]:
    return [train_step(parts, lr=0.01, step=step).loss for step in range(3)]


def main() -> None:
    report = {}
    with TemporaryDirectory() as name, one_process() as groups:
        folder = Path(name)
        write_source(folder / "toy", [[1, 2, 3, 4, 5, 6, 7, 0]] * 9)
        tokenizer = write_tokenizer(folder / "tokenizer")
        for case, (precision, written_as) in CASES.items():
            layout = {"use_distributed_optimizer": written_as is not None}
            read = {"toy": (folder / "toy", 16)}
            plan = plan_reading(
                read, global_batch_size=2, micro_batch_size=2, layout=layout, precision=precision, tokenizer=tokenizer
            )
            for steps in (0, 3):
                report[f"{case}, {steps} steps"] = train_and_resume(
                    plan, groups, folder / case / str(steps), written_as or "fully_reshardable", steps=steps
                )
    Path(sys.argv[1]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
