"""The loop: step, look, save, until the budget is spent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from data_tools.errors import UserError
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.parallel import Waits
from megatron_ext.runtime.signals import StopRequest
from megatron_ext.training.parts import Parts
from megatron_ext.training.rl_step import rl_step
from megatron_ext.training.rollout_source import RolloutSource
from megatron_ext.training.saving import Saver
from megatron_ext.training.schedule import learning_rate
from megatron_ext.training.state import StepResult, TrainState
from megatron_ext.training.step import train_step
from megatron_ext.training.trace import StepTrace
from megatron_ext.training.validate import validate
from megatron_ext.training.watcher import Watcher


@dataclass(frozen=True)
class Outcome:
    """How the loop ended.

    Attributes:
        state: The counters, which the newest checkpoint holds too.
        reason: `finished` spent the budget, `cut` reached training.max_steps, `stopped` was asked to.
        signal_name: What asked for the stop.
    """

    state: TrainState
    reason: Literal["finished", "cut", "stopped"]
    signal_name: str | None = None


def last_step_of(plan: StagePlan) -> int:
    """The step at which the loop ends: the budget's, or training.max_steps if that is less."""
    cut = plan.batch.max_steps
    return plan.batch.total_steps if cut is None else min(cut, plan.batch.total_steps)


def is_spent(plan: StagePlan, state: TrainState) -> bool:
    """Whether an rl stage has sampled the tokens of its budget, before its last step."""
    return plan.rl is not None and 0 < plan.rl.max_sampled_tokens <= state.sampled_tokens


def _samples_of_chain(plan: StagePlan, consumed_samples: int) -> float:
    """What the whole chain has read, in the samples of its schedule: those of its first stage."""
    tokens = plan.batch.tokens_before + consumed_samples * plan.batch.sequence_length
    return tokens / plan.schedule.sample_tokens


def _step(parts: Parts, *, lr: float, step: int, may_skip: bool) -> StepResult:
    act = train_step if parts.plan.rl is None else rl_step
    return act(parts, lr=lr, step=step, may_skip=may_skip)


def _held_out(parts: Parts, *, may_fail: bool) -> tuple[dict[str, float], UserError | None]:
    """The validation; of an rl stage that can go on behind this step, the error of one that could not sample."""
    try:
        return validate(parts), None
    except UserError as error:
        if not may_fail or parts.plan.rl is None:
            raise
        return {}, error


def train(
    parts: Parts,
    state: TrainState,
    *,
    saver: Saver,
    watcher: Watcher | None,
    trace: StepTrace,
    stop: StopRequest,
    collect: Callable[[int], None],
    waits: Waits,
    beat: Callable[[], None],
) -> Outcome:
    """Trains from `state` to the end of the stage, a cut, or a stop.

    All ranks must call this. The newest checkpoint holds the returned state.

    Args:
        parts: What is trained, at `state`.
        state: Where to go on.
        saver: Writes checkpoints.
        watcher: Is told of every step; None on all ranks but the main one.
        trace: Records the steps that the plan wants a profile of.
        stop: Is asked after every step.
        collect: Is told of every step that is over; collects garbage where the plan wants it.
        waits: How long ranks wait for each other.
        beat: Tells who watches this rank that it goes on.
    """
    plan, cadence = parts.plan, parts.plan.cadence
    last_step, first_step = last_step_of(plan), state.step + 1
    while state.step < last_step and not is_spent(plan, state):
        began = time.perf_counter()
        consumed_after = state.consumed_samples + plan.batch.batch_size_at(state.consumed_samples)
        lr = learning_rate(plan.schedule, plan.optimizer, consumed_samples=_samples_of_chain(plan, consumed_after))
        may_skip = state.skipped_steps < plan.execution.max_skipped_steps
        try:
            with trace.step(state.step + 1):
                result = _step(parts, lr=lr, step=state.step + 1, may_skip=may_skip)
        except UserError:
            if isinstance(parts.cursor, RolloutSource) and parts.cursor.is_unchanged:
                saver.keep(state)  # hours of sampling may lie behind it
            raise
        state = state.advance(result)
        collect(state.step)
        seconds = time.perf_counter() - began
        is_last = state.step == last_step or is_spent(plan, state)
        is_validated = is_last or state.step % cadence.validation_interval_steps == 0
        validation, failed = _held_out(parts, may_fail=not is_last) if is_validated else ({}, None)
        if watcher is not None:
            watcher.on_step(state, result, seconds=seconds, validation=validation, save_s=saver.take_seconds())
        if state.step == first_step:
            waits.begin_steps()
        if failed is not None:
            saver.keep(state)
            raise failed
        signal_name = stop.agreed()
        saver.after_step(state, is_last=is_last or signal_name is not None)
        beat()
        if signal_name and not is_last:
            return Outcome(state, "stopped", signal_name)
    is_finished = state.step >= plan.batch.total_steps or is_spent(plan, state)
    return Outcome(state, "finished" if is_finished else "cut")
