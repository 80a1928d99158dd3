"""How far long work is: a bar with throughput and time left on a terminal, a line a minute in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 60.0


class Progress(Protocol):
    """Is told how far the work is."""

    def advance(self, size: int) -> None:
        """Takes note of `size` more bytes, or what else is counted, done."""


class NoProgress:
    """Tells nobody; for calls from Python."""

    def advance(self, size: int) -> None:
        """Does nothing."""


class _Bar:
    def __init__(self, bar: RichProgress, label: str, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task(label, total=total)

    def advance(self, size: int) -> None:
        self._bar.advance(self._task, size)


class _Lines:
    def __init__(self, label: str, total: int, unit: str | None) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, size: int) -> None:
        self._done += size
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        rate = self._done / (now - self._start)
        left_s = max(0.0, self._total - self._done) / rate
        percent = 100 * self._done / max(1, self._total)
        speed = f"{rate / 1e6:.1f} MB/s" if self._unit is None else f"{rate:,.0f} {self._unit}/s"
        print(f"{self._label}: {percent:.0f} %, {speed}, {left_s:.0f} s left", file=sys.stderr, flush=True)


@contextmanager
def shown(label: str, total: int, *, unit: str | None = None) -> Iterator[Progress]:
    """Shows the progress of work on `total` bytes, on stderr.

    Args:
        label: What is done, for people.
        total: Bytes of all the work; an estimate will do.
        unit: What is counted instead of bytes.
    """
    if os.environ.get("RANK", "0") != "0":  # of all processes of torchrun one is enough
        yield NoProgress()
        return
    if not sys.stderr.isatty():
        yield _Lines(label, total, unit)
        return
    from rich import progress  # imported where it is shown: it takes longer than a finished job's check
    from rich.console import Console

    class Speed(progress.ProgressColumn):
        def render(self, task: progress.Task) -> str:
            return f"{task.speed or 0:,.0f} {unit}/s"

    bytes_done = (progress.DownloadColumn(), progress.TransferSpeedColumn())
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *(bytes_done if unit is None else (progress.MofNCompleteColumn(), Speed())),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, label, total)
