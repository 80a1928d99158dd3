"""The main rank's eyes: progress on the screen, metrics on disk. Changes nothing of the training."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.metrics import MetricsLog
from megatron_ext.training.progress import TrainingProgress
from megatron_ext.training.state import StepResult, TrainState


class Watcher:
    """Writes and shows every step while entered.

    Args:
        metrics_file: metrics.jsonl.
        plan: The stage.
        state: Where it goes on.
        last_step: Where it will end.
        resumed_from: The checkpoint it goes on from; None at the beginning.
    """

    def __init__(
        self, metrics_file: Path, plan: StagePlan, state: TrainState, *, last_step: int, resumed_from: Path | None
    ) -> None:
        self._metrics = MetricsLog(metrics_file, plan, from_step=state.step)
        self._progress = TrainingProgress(plan.stage, from_step=state.step, last_step=last_step)
        if resumed_from is not None:
            self._progress.say(f"goes on at step {state.step} from {resumed_from}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()
        self._metrics.close()

    def on_step(self, state: TrainState, result: StepResult, *, seconds: float, validation: dict[str, float]) -> None:
        """Writes and shows one step; `state` holds the counters after it."""
        self._metrics.write(state, result, seconds=seconds, validation=validation)
        self._progress.show(state, result, seconds=seconds, validation=validation)
