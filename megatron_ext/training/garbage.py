"""Python's garbage collection at steps that are the same on all ranks.

Python collects when enough objects were made, which every rank has done at another time: with a thousand ranks
some rank collects in nearly every step, and the others wait for it in the next collective.

Source: the reasons and the rule are Megatron-LM's `--manual-gc` (core_v0.19.0, `training/config/training_config.py`).
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def collecting_every(interval_steps: int) -> Iterator[Callable[[int], None]]:
    """Takes collection away from Python until left; with 0 nothing changes.

    Args:
        interval_steps: Steps between two collections.

    Yields:
        To be called after each step with its number, from 1.
    """
    if not interval_steps:
        yield lambda _: None
        return

    def after_step(step: int) -> None:
        if step % interval_steps == 0:
            gc.collect()

    was_enabled = gc.isenabled()
    gc.disable()
    gc.collect()  # what set-up left behind
    try:
        yield after_step
    finally:
        if was_enabled:
            gc.enable()
