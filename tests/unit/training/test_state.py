"""Counters move in one place."""

from __future__ import annotations

from megatron_ext.training.state import StepResult, TrainState


def test_advance_adds_one_step_and_what_the_step_consumed() -> None:
    result = StepResult(
        loss=1.0, loss_by_source={}, grad_norm=1.0, lr=0.1, samples=4, processed_tokens=32, trained_tokens=30
    )
    state = TrainState(step=2, consumed_samples=8, consumed_tokens=64, trained_tokens=61).advance(result)
    assert state == TrainState(step=3, consumed_samples=12, consumed_tokens=96, trained_tokens=91)
