"""What a running study shows: the nodes at work on a terminal, a line a minute in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from megatron_ext.study.page.wording import duration
from megatron_ext.study.state import States
from megatron_ext.study.status_view import at_work, counts
from megatron_ext.study.study_plan import StudyPlan

_LINE_S = 60.0

Show = Callable[[States], None]


@contextmanager
def display(plan: StudyPlan) -> Iterator[Show]:
    """Shows states as they come.

    Yields:
        What to call with them.
    """
    console = Console()
    if not console.is_terminal:
        yield _Lines().show
        return
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        yield lambda states: live.update(at_work(plan, states), refresh=True)


class _Lines:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def show(self, states: States) -> None:
        """A line, when one is due."""
        if time.monotonic() - self._last < _LINE_S:
            return
        self._last = time.monotonic()
        print(f"{counts(states)}{'; ' if (running := _running(states)) else ''}{running}", flush=True)


def _running(states: States) -> str:
    parts = []
    for state in states.values():
        if state.state == "running" and (one := state.progress) is not None:
            left = f", {duration(one.seconds_left)} left" if one.seconds_left is not None else ""
            parts.append(f"{state.name} step {one.step}/{one.total}{left}")
    return ", ".join(parts)
