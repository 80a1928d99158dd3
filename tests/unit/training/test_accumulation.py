"""However a global batch is cut into microbatches, the update is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_ext.datasets.batch import Batch
from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.training.parts import make_parts
from megatron_ext.training.state import StepResult
from megatron_ext.training.step import train_step
from tests.support.one_process import one_process
from tests.support.sources import plan_reading, write_source


class MaskedCursor(BlendedCursor):
    """Trains on row k of a global batch from its token k % 4 on, so that microbatches have unequal weight."""

    def next_step(self) -> tuple[Batch, ...]:
        """The same rows with other masks."""
        row = 0
        for batch in (batches := super().next_step()):
            for mask in batch.loss_mask:
                mask[: row % 4] = 0.0
                row += 1
        return batches


def update(tmp_path: Path, micro_batch_size: int) -> tuple[StepResult, dict[str, torch.Tensor]]:
    plan = plan_reading({"toy": (tmp_path / "toy", 16)}, global_batch_size=8, micro_batch_size=micro_batch_size)
    with one_process() as groups:
        parts = make_parts(plan, groups)
        parts = replace(parts, cursor=MaskedCursor(plan, data_parallel_rank=0, data_parallel_size=1))
        result = train_step(parts, lr=0.01, step=1)
        return result, {name: value.main_grad.clone() for name, value in parts.model.module.named_parameters()}


def test_eight_microbatches_of_one_make_the_update_of_two_of_four(tmp_path: Path) -> None:
    write_source(tmp_path / "toy", [[1, 2, 3, 4, 5, 6, 7, 0]] * 9)
    (ones, ones_grad), (fours, fours_grad) = update(tmp_path, 1), update(tmp_path, 4)
    assert ones.trained_tokens == fours.trained_tokens == 2 * (4 + 3 + 2 + 1)
    assert fours.loss == pytest.approx(ones.loss, rel=1e-6)
    assert fours.grad_norm == pytest.approx(ones.grad_norm, rel=1e-5)
    for name, gradient in ones_grad.items():
        torch.testing.assert_close(fours_grad[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
