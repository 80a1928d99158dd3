"""Packed conversations give the update of the same conversations padded, a row each, and transformers' loss.

fp32. Loss within 1e-6: a float64 sum of cross entropies that agree to fp32 rounding. Gradients within 2e-5 of the
largest entry of each matrix: sums over a few hundred tokens in another order; those of A_log and dt_bias nearly
cancel, 5e-4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from megatron_ext.datasets.batch import Batch
from megatron_ext.runtime.seed import seed_everything
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.step import run_microbatches
from tests.support.nemotron_h import copy_weights, nemotron_h
from tests.support.one_process import one_process, strengthen
from tests.support.sft_project import Talk, make_sft_project, write_chat

LENGTH = 160
TALKS: list[Talk] = [
    (1 + 7 * number, [(number % 3 + 1, 2 + 3 * number), (4 * number + 2, 7 * number)]) for number in range(2, 14)
]
KEYS = (f"training.sequence_length={LENGTH}", "training.global_batch_size=50", "budget.examples=16")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    project = make_sft_project(tmp_path_factory.mktemp("packed"))
    write_chat(project, "c", TALKS)
    plan = project.plan(*KEYS)
    with one_process() as groups:
        seed_everything(plan.seed)
        made = make_parts(plan, groups)
        strengthen(made.model.module)
        yield made


def batches_of(parts: Parts, loss: str) -> tuple[Batch, ...]:
    assert parts.plan.sft is not None
    parts.cursor.steps_read = 0  # type: ignore[union-attr]
    options = parts.plan.sft.options.model_copy(update={"loss": loss})
    parts.cursor._sft = parts.plan.sft.model_copy(update={"options": options})  # type: ignore[union-attr]
    return parts.cursor.next_step()


def talks_of(batches: Sequence[Batch]) -> Iterator[tuple[Batch, int, int]]:
    """The row and the bounds of each conversation."""
    for batch in batches:
        for low, high in pairwise(batch.cu_seqlens or ()):
            if batch.loss_mask[0, low:high].any():
                yield batch, low, high


def padded(batch: Batch, low: int, high: int) -> Batch:
    """One conversation alone in a row of the same length, unpacked."""

    def alone(row: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(row)
        out[:, : high - low] = row[:, low:high]
        return out

    names = ("tokens", "labels", "loss_mask", "source_index")
    return replace(batch, cu_seqlens=None, **{name: alone(getattr(batch, name)) for name in names})


def update(parts: Parts, batches: Sequence[Batch]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    parts.model.zero_grad_buffer()
    report = run_microbatches(parts, batches, forward_only=False).sum(0)
    return report[0] / report[1], {
        name: value.main_grad.clone() for name, value in parts.model.module.named_parameters()
    }


@pytest.mark.parametrize("loss", ["token", "sample"])
def test_packed_rows_give_the_update_of_padded_ones(parts: Parts, loss: str) -> None:
    batches = batches_of(parts, loss)
    alone = [padded(*talk) for talk in talks_of(batches)]
    assert (len(batches), len(alone)) == (5, 16)
    packed_loss, packed_gradients = update(parts, batches)
    padded_loss, padded_gradients = update(parts, alone)
    assert float(packed_loss) == pytest.approx(float(padded_loss), rel=1e-6)
    for name, gradient in packed_gradients.items():
        expected = padded_gradients[name]
        error = float((gradient - expected).abs().max() / expected.abs().max())
        assert error < (5e-4 if name.endswith(("A_log", "dt_bias")) else 2e-5), f"{name}: {error}"


def test_the_loss_is_transformers_loss_of_the_same_tokens_and_masks(parts: Parts) -> None:
    batches = batches_of(parts, "token")
    theirs: Any = nemotron_h(parts.plan).eval()
    copy_weights(parts.model.module, theirs, parts.plan)
    trained = sum(int((batch.loss_mask > 0).sum()) for batch in batches)
    total = torch.zeros((), dtype=torch.float64)
    for batch, low, high in talks_of(batches):
        ids, is_target = batch.tokens[:, low:high], torch.zeros(1, high - low, dtype=torch.bool)
        is_target[:, 1:] = batch.loss_mask[:, low : high - 1] > 0
        labels = ids.masked_fill(~is_target, -100)
        with torch.no_grad():
            logits = theirs(ids).logits
        total += ForCausalLMLoss(logits, labels, theirs.config.vocab_size, num_items_in_batch=trained).double()
    packed_loss, _ = update(parts, batches)
    assert float(packed_loss) == pytest.approx(float(total), rel=1e-6)
