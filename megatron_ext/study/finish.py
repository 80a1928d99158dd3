"""What a run of a study says at its end, and with which exit code."""

from __future__ import annotations

from collections.abc import Mapping

from data_tools.errors import TrainingError, UsageError
from megatron_ext.study.launcher import Task
from megatron_ext.study.runner import States
from megatron_ext.study.status_view import counts, log_of
from megatron_ext.study.study_plan import StudyPlan


def conclude(plan: StudyPlan, tasks: Mapping[str, Task], states: States, *, stopped_by: str = "") -> None:
    """Says what became of a run.

    Raises:
        TrainingError: Not all of its tasks are finished.
    """
    left = [states[name] for name in tasks if states[name].state != "finished"]
    if not left:
        print(f"{plan.name}: {counts(states)}", flush=True)
        return
    ended = [state for state in left if state.state in ("failed", "stopped")]
    lines = [f"  {state.state} {state.name}: {state.reason}{log_of(state)}" for state in ended]
    if behind := [state.name for state in left if state.state == "blocked"]:
        lines.append(f"  blocked behind them: {', '.join(behind)}")
    head = f"{plan.name}: {f'stopped by {stopped_by}; ' if stopped_by else ''}{counts(states)}"
    only_unready = not ended and not behind and not stopped_by
    if only_unready and all(states[name].state == "waiting" for name in tasks):
        raise UsageError(f"{head}\n  Nothing could begin: the stages before are left out of this run.")
    if only_unready:
        print(head, flush=True)
        return
    raise TrainingError("\n".join([head, *lines, "  Run the study again to go on; what is finished stays."]))
