"""The main rank's eyes: progress on the screen, metrics on disk. Changes nothing of the training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.metrics import MetricsLog, read_last
from megatron_ext.training.progress import TrainingProgress
from megatron_ext.training.slow_ranks import Place, SlowRanks
from megatron_ext.training.spikes import WINDOW_STEPS, SpikeWatch
from megatron_ext.training.state import StepResult, TrainState


class Watcher:
    """Writes and shows every step while entered.

    Args:
        metrics_file: metrics.jsonl.
        plan: The stage.
        state: Where it goes on.
        last_step: Where it will end.
        places: Of all ranks, where their times are measured.
    """

    def __init__(
        self, metrics_file: Path, plan: StagePlan, state: TrainState, *, last_step: int, places: Sequence[Place] = ()
    ) -> None:
        self._metrics = MetricsLog(metrics_file, plan, from_step=state.step)
        self._loss_kind = read_last(metrics_file).get("loss_kind", "")
        self._progress = TrainingProgress(plan.stage, from_step=state.step, last_step=last_step)
        self._spikes = SpikeWatch(plan.logging.loss_spike_nats, self._metrics.recent_losses)
        self._ranks = SlowRanks(places)
        self._max_skipped_steps = plan.execution.max_skipped_steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()
        for line in self._ranks.report():
            self._progress.say(line)
        self._metrics.close()

    def say(self, text: str) -> None:
        """Writes a line above the bar."""
        self._progress.say(text)

    def on_step(
        self, state: TrainState, result: StepResult, *, seconds: float, validation: dict[str, float], save_s: float
    ) -> None:
        """Writes and shows one step; `state` holds the counters after it."""
        above, begins = self._spikes.look(result.loss) if math.isfinite(result.loss) else (None, False)
        slow = self._ranks.add(result.rank_seconds) if result.rank_seconds else {}
        self._metrics.write(
            state, result, seconds=seconds, validation=validation, save_s=save_s, loss_spike=above, slow_ranks=slow
        )
        if slow:
            self._progress.say(self._ranks.sentence(slow, state.step))
        if result.skipped is not None:
            self._progress.say(
                f"WARNING: {result.skipped}\n  The update was skipped: {state.skipped_steps} of "
                f"training.max_skipped_steps {self._max_skipped_steps}."
            )
        if self._loss_kind not in ("", result.loss_kind):
            self._progress.say(
                f"step {state.step}: from here on the loss weighs by {result.loss_kind}, not by {self._loss_kind} "
                "(sft.loss_switch_tokens); losses before and after do not compare."
            )
        self._loss_kind = result.loss_kind
        if begins:
            self._progress.say(
                f"WARNING: step {state.step}: loss {result.loss:.3f} is {above:.3f} nats above the median of the last "
                f"{WINDOW_STEPS} steps (logging.loss_spike_nats)."
            )
        self._progress.show(state, result, seconds=seconds, validation=validation)
