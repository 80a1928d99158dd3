"""Makes the sample sources that were asked for, one after the other, their families in parallel."""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from data_tools.errors import UsageError
from data_tools.progress import shown
from data_tools.samples.write import DEMO_SOURCES, SOURCES, Request, RunParts, WrittenSample, write_sample

MANY_ROWS = 2_000
"""A guess, for the progress bar, where all rows are taken that there are."""


def make_samples(out: Path, request: Request, *, only: str | None = None, workers: int = 1) -> list[WrittenSample]:
    """Makes sample sources in a folder.

    Args:
        out: The folder.
        request: What decides them.
        only: Names separated by commas; those of the demo when None.
        workers: Processes; they decide nothing but the time it takes.

    Raises:
        UsageError: If a name, the scale or the workers mean nothing.
        SetupError: If the machine lacks what a source is made of.
        DataError: If the folder holds another sample.
    """
    names = list(dict.fromkeys(only.split(","))) if only is not None else [source.name for source in DEMO_SOURCES]
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        raise UsageError(f"--only: {unknown[0]!r} is none of {','.join(sorted(SOURCES))}")
    if not math.isfinite(request.scale) or request.scale <= 0:
        raise UsageError(f"--scale: {request.scale} is not above 0")
    if workers < 1:
        raise UsageError(f"--workers: {workers} is below 1")
    written = []
    with _parts_runner(workers) as run_parts:
        for name in names:
            source = SOURCES[name]
            expected_bytes = len(source.parts) * (request.num_rows(source) or MANY_ROWS) * source.row_bytes
            with shown(f"sample {name}", expected_bytes) as progress:
                written.append(write_sample(source, out, request, run_parts=run_parts, progress=progress))
    return written


@contextmanager
def _parts_runner(workers: int) -> Iterator[RunParts]:
    if workers == 1:
        yield map
        return
    # spawned, not forked: the progress bar has a thread
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        yield pool.map


def _end_with_parent() -> None:
    """Ends this process when the command is killed; the pool's own pipe would keep it waiting for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
