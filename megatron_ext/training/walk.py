"""From a plan to a finished stage, once the process groups are there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.seed import seed_everything
from megatron_ext.runtime.signals import StopRequest
from megatron_ext.training.checkpoint import checkpoints_of, load_checkpoint, remove_unfinished
from megatron_ext.training.loop import Outcome, last_step_of, train
from megatron_ext.training.metrics import MetricsLog, read_last
from megatron_ext.training.parts import make_parts
from megatron_ext.training.progress import TrainingProgress
from megatron_ext.training.stage_folder import StageFolder, write_json
from megatron_ext.training.state import StepResult, TrainState


def newest_checkpoint(folder: StageFolder) -> Path | None:
    """The checkpoint at which a run goes on; None at the beginning."""
    return next(reversed(checkpoints_of(folder.checkpoints)), None)


@contextlib.contextmanager
def taken(folder: StageFolder, plan: StagePlan, *, is_main: bool) -> Iterator[None]:
    """Holds the folder for this run and clears what a killed one left; the main rank does it for all."""
    if not is_main:
        yield
        return
    with folder.open_for_writing(plan):
        remove_unfinished(folder.checkpoints)
        yield


def walk(
    plan: StagePlan, folder: StageFolder, groups: ProcessGroupCollection, newest: Path | None, *, is_main: bool
) -> tuple[Outcome, str | None]:
    """Builds, resumes, trains, and writes stage.json when the budget is spent.

    All ranks must call this, inside a device scope.

    Args:
        plan: The stage.
        folder: Taken by this run.
        groups: Process groups.
        newest: Where to go on; None to begin.
        is_main: Whether this rank speaks and writes for all.

    Returns:
        How the loop ended, and the signal that this rank got, if any.
    """
    seed_everything(plan.seed)
    with StopRequest() as stop:
        parts = make_parts(plan, groups)
        state = TrainState() if newest is None else load_checkpoint(newest, parts)
        watcher = MainWatcher(folder, plan, state, newest) if is_main else SilentWatcher()
        try:
            outcome = train(parts, state, folder=folder, watcher=watcher, stop=stop)
        finally:
            watcher.close()
    if outcome.reason == "finished" and is_main:
        write_json(folder.stage_file, _stage_facts(plan, folder, outcome))
    dist.barrier()
    return outcome, stop.signal_name


class SilentWatcher:
    """All ranks but the main one."""

    def on_step(self, state: TrainState, result: StepResult, *, seconds: float, validation: dict[str, float]) -> None:
        """Says nothing."""

    def close(self) -> None:
        """Has nothing open."""


class MainWatcher:
    """Progress on the screen, metrics on disk."""

    def __init__(self, folder: StageFolder, plan: StagePlan, state: TrainState, newest: Path | None) -> None:
        self._metrics = MetricsLog(folder.metrics_file, plan, from_step=state.step)
        self._progress = TrainingProgress(plan.stage, from_step=state.step, last_step=last_step_of(plan))
        if newest is not None:
            self._progress.say(f"goes on at step {state.step} from {newest}")

    def on_step(self, state: TrainState, result: StepResult, *, seconds: float, validation: dict[str, float]) -> None:
        """Writes and shows one step."""
        self._metrics.write(state, result, seconds=seconds, validation=validation)
        self._progress.show(state, result, seconds=seconds, validation=validation)

    def close(self) -> None:
        """Closes both."""
        self._progress.close()
        self._metrics.close()


def _stage_facts(plan: StagePlan, folder: StageFolder, outcome: Outcome) -> dict[str, object]:
    """What a finished stage says of itself; nothing in it depends on when or where it ran."""
    last = read_last(folder.metrics_file)
    return {
        "stage_id": plan.stage_id,
        "stage": plan.stage,
        "meaning": plan.meaning,
        "state": outcome.state.to_json(),
        "checkpoint": f"checkpoints/step_{outcome.state.step}",
        "tokenizer_fingerprint": plan.data.tokenizer_fingerprint,
        "loss": last["loss"],
        "validation": last["validation"],
    }
