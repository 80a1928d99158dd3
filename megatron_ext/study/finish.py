"""What a run of a study says at its end, and with which exit code."""

from __future__ import annotations

from collections.abc import Mapping

from data_tools.errors import TrainingError, UsageError
from megatron_ext.study.launcher import Task
from megatron_ext.study.state import States
from megatron_ext.study.status_view import counts, log_of
from megatron_ext.study.study_plan import StudyPlan


def conclude(plan: StudyPlan, tasks: Mapping[str, Task], states: States, *, stopped_by: str = "") -> None:
    """Says what became of a run.

    Raises:
        TrainingError: Some of its tasks failed or stopped.
        UsageError: The others could not begin, for what stands before them was left out of the run.
    """
    left = [states[name] for name in tasks if states[name].state != "finished"]
    if not left:
        print(f"{plan.name}: {counts(states)}", flush=True)
        return
    ended = [state for state in left if state.state in ("failed", "stopped")]
    lines = [f"  {state.state} {state.name}: {state.reason}{log_of(state)}" for state in ended]
    if behind := [state.name for state in left if state.state == "blocked"]:
        lines.append(f"  blocked behind them: {', '.join(behind)}")
    if waiting := [state.name for state in left if state.state == "waiting"]:
        lines.append(f"  not begun: {', '.join(waiting)}")
    head = f"{plan.name}: {f'stopped by {stopped_by}; ' if stopped_by else ''}{counts(states)}"
    if not ended and not behind and not stopped_by:
        lines.append("  The stages before are left out of this run: leave out --only, or run those first.")
        raise UsageError("\n".join([head, *lines]))
    raise TrainingError("\n".join([head, *lines, "  Run the study again to go on; what is finished stays."]))
