"""metrics.jsonl, tensorboard and Weights & Biases.

`metrics.jsonl` has one JSON object a line and a line a step; docs/reference/metrics.md lists the
fields. A run that resumes at step N first drops the lines behind N, which it is about to write again.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from data_tools.atomic_files import write_atomically
from data_tools.errors import DataError, SetupError
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.rank_times import slowest
from megatron_ext.training.spikes import WINDOW_STEPS
from megatron_ext.training.state import StepResult, TrainState

_EXTRAS = {"tensorboard": "logging.tensorboard: false", "wandb": "logging.wandb_project: null"}


def check_loggers(plan: StagePlan) -> None:
    """Refuses loggers that are asked for and not installed.

    Raises:
        SetupError: Names the package and the key that does without it.
    """
    wanted = {"tensorboard": plan.logging.tensorboard, "wandb": plan.logging.wandb_project is not None}
    for package, is_wanted in wanted.items():
        if is_wanted and importlib.util.find_spec(package) is None:
            raise SetupError(f"{package} is not installed. Run `pip install {package}`, or set {_EXTRAS[package]}.")


class MetricsLog:
    """Writes each step to every logger of the plan.

    Args:
        file: metrics.jsonl.
        plan: The stage.
        from_step: The step it resumes at; 0 at the beginning.

    Attributes:
        recent_losses: Finite losses of the newest steps before, oldest first.
    """

    def __init__(self, file: Path, plan: StagePlan, *, from_step: int) -> None:
        self.recent_losses = _keep_steps_until(file, from_step)
        self._file = file.open("a")
        self._samples = plan.rl is not None
        self._tensorboard = _open_tensorboard(file.parent, from_step) if plan.logging.tensorboard else None
        self._wandb = _open_wandb(file.parent, plan) if plan.logging.wandb_project else None

    def write(
        self,
        state: TrainState,
        result: StepResult,
        *,
        seconds: float,
        validation: dict[str, float],
        save_s: float,
        loss_spike: float | None = None,
        slow_ranks: dict[int, float] | None = None,
    ) -> None:
        """Writes one step.

        Args:
            state: The counters after it.
            result: What it did.
            seconds: Wall time of the step, validation and checkpoint not counted.
            validation: Held-out loss by source, empty when there was none.
            save_s: Seconds that training stood still for saving since the line before.
            loss_spike: Nats above the median of recent steps, in a spike.
            slow_ranks: Of the window that ends here, with the ratio of their time to that of their peers.
        """
        line: dict[str, Any] = {
            **state.to_json(),
            "loss": result.loss,
            "loss_by_source": result.loss_by_source,
            "validation": validation,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "tokens_per_s": result.processed_tokens / seconds,
            "save_s": save_s,
            **result.norms,
            **result.objective,
        }
        if not self._samples:
            del line["sampled_tokens"]
        if result.loss_kind:
            line["loss_kind"] = result.loss_kind
        if result.loss_by_domain:
            line["loss_by_domain"] = result.loss_by_domain
        if result.rank_seconds:
            line["rank_times"] = slowest(result.rank_seconds)
            line["rank_seconds"] = {str(rank): seconds for rank, seconds in enumerate(result.rank_seconds)}
        if slow_ranks:
            line["slow_ranks"] = {str(rank): ratio for rank, ratio in slow_ranks.items()}
        if loss_spike is not None:
            line["loss_spike"] = loss_spike
        if result.skipped is not None:
            line = _finite(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        scalars = _flatten(line)
        if self._tensorboard is not None:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(name, value, state.step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=state.step)

    def close(self) -> None:
        """Flushes and closes every logger."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_last(file: Path) -> dict[str, Any]:
    """Reads the last step of a metrics.jsonl; empty when somebody removed the file."""
    lines = file.read_text().splitlines() if file.is_file() else []
    line: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return line


def _keep_steps_until(file: Path, step: int) -> list[float]:
    if not file.is_file():
        return []
    whole = file.read_text().splitlines(keepends=True)
    if whole and not _is_whole(whole[-1]):  # a killed run can leave it so; it belongs to a step that is done again
        whole.pop()
    kept = [line for number, line in enumerate(whole, 1) if _step_of(file, number, line) <= step]
    write_atomically(file, "".join(kept).encode())
    losses = [json.loads(line)["loss"] for line in kept[-WINDOW_STEPS:]]
    return [loss for loss in losses if loss is not None]


def _is_whole(line: str) -> bool:
    try:
        return line.endswith("\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _step_of(file: Path, number: int, line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{file}:{number}: not a line of metrics: {line[:80]!r}. Remove the line, run again.") from None


def _flatten(line: dict[str, Any]) -> dict[str, float]:
    flat = {}
    for name, value in line.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{source}": loss for source, loss in value.items()}
        elif name not in ("step", "loss_kind"):
            flat[name] = value
    return {name: value for name, value in flat.items() if value is not None}


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """NaN and Inf as null: JSON has no word for them."""
    finite: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, dict):
            finite[name] = _finite(value)
        else:
            finite[name] = value if isinstance(value, str) or math.isfinite(value) else None
    return finite


def _open_tensorboard(folder: Path, from_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)


def _open_wandb(folder: Path, plan: StagePlan) -> Any:
    import wandb

    return wandb.init(
        project=plan.logging.wandb_project,
        id=plan.stage_id,
        name=plan.stage_id,
        dir=str(folder),
        resume="allow",
        config=plan.model_dump(mode="json"),
    )
