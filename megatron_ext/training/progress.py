"""A live bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.quantities import format_count
from megatron_ext.training.state import StepResult, TrainState

_LOG_INTERVAL_S = 60.0


class TrainingProgress:
    """Shows how a stage comes along.

    Args:
        stage: Name on the bar.
        from_step: The step it resumes at.
        last_step: The step it ends at.
        console: Where to write; standard output unless given.
    """

    def __init__(self, stage: str, *, from_step: int, last_step: int, console: Console | None = None) -> None:
        self._console = console or Console()
        self._stage, self._last_step = stage, last_step
        self._from_step = from_step
        self._began = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[facts]}"))
            self._bar = Progress(TextColumn(stage), *columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(stage, total=last_step, completed=from_step, facts="")

    def show(self, state: TrainState, result: StepResult, *, seconds: float, validation: dict[str, float]) -> None:
        """Shows one step; held-out losses always get a line of their own."""
        facts = f"{_gist(result)}  {format_count(round(result.processed_tokens / seconds))} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=state.step, facts=facts)
        elif self._is_due(state):
            left = self._seconds_left(state)
            rest = f"{left / 60:.1f} min" if left >= 60 else f"{left:.0f} s"
            self.say(f"step {state.step}/{self._last_step}  {facts}  about {rest} left")
        if validation:
            self.say(f"step {state.step}/{self._last_step}  {describe_validation(self._stage, validation)}")

    def say(self, text: str) -> None:
        """Writes a line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the bar where it is."""
        if self._bar is not None:
            self._bar.stop()

    def _is_due(self, state: TrainState) -> bool:
        now = time.monotonic()
        is_edge = state.step in (self._from_step + 1, self._last_step)
        if not is_edge and now - self._last_line < _LOG_INTERVAL_S:
            return False
        self._last_line = now
        return True

    def _seconds_left(self, state: TrainState) -> float:
        per_step = (time.monotonic() - self._began) / max(1, state.step - self._from_step)
        return per_step * (self._last_step - state.step)


def describe_validation(stage: str, validation: dict[str, float]) -> str:
    """What a validation has found, by source.

    >>> describe_validation("rl", {"sums": 0.25, "sums_low": 0.046, "sums_high": 0.699})
    'held-out pass rate: sums 25.0 % (95 %: 4.6 to 69.9)'
    """
    if stage != "rl":
        return "held-out loss: " + "  ".join(f"{source} {loss:.3f}" for source, loss in validation.items())
    percent = {name: 100 * value for name, value in validation.items()}
    sources = [name for name in percent if f"{name}_low" in percent]
    return "held-out pass rate: " + "  ".join(
        f"{name} {percent[name]:.1f} % (95 %: {percent[f'{name}_low']:.1f} to {percent[f'{name}_high']:.1f})"
        for name in sources
    )


def _gist(result: StepResult) -> str:
    """The number by which a step is judged at a glance."""
    facts = result.objective
    if "reward" in facts:
        return f"reward {facts['reward']:.3f}  right {100 * facts['pass_rate']:.0f} %"
    return f"loss {result.loss:.3f}"
