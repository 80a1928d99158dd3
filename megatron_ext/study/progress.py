"""How far a stage has come, by the last lines of its metrics.jsonl; docs/reference/metrics.md lists their fields."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.study.log_lines import last_lines
from megatron_ext.study.study_plan import StageNode

_RECENT_STEPS = 20
"""Steps over which the speed is averaged: of one step alone it jumps."""


@dataclass(frozen=True)
class Progress:
    """How far a stage has come.

    Attributes:
        step: Steps done.
        total: Steps of the stage.
        tokens_per_s: Processed tokens, the mean of recent steps.
        loss: Of the last step; None where it was not finite.
        reward: rl: mean of the last step's completions.
        seconds_left: At this speed, if it runs; None before the first step.
    """

    step: int
    total: int
    tokens_per_s: float | None = None
    loss: float | None = None
    reward: float | None = None
    seconds_left: float | None = None


def read_progress(folder: Path, node: StageNode) -> Progress | None:
    """How far the stage of a folder has come; None where it has done no step.

    Args:
        folder: Of the stage.
        node: What it is to do.
    """
    steps = list(_steps(folder / "metrics.jsonl"))[-_RECENT_STEPS:]
    if not steps:
        return None
    last = steps[-1]
    speeds = [speed for step in steps if (speed := _finite(step.get("tokens_per_s")))]
    speed = len(speeds) / sum(1 / one for one in speeds) if speeds else None  # steps are equally long in tokens
    left = max(0, node.total_steps - last["step"])
    return Progress(
        step=last["step"],
        total=node.total_steps,
        tokens_per_s=speed,
        loss=_finite(last.get("loss")),
        reward=_finite(last.get("reward")),
        seconds_left=left * node.tokens / node.total_steps / speed if speed else None,
    )


def _steps(file: Path) -> Iterator[dict[str, Any]]:
    for line in last_lines(file):
        try:
            step = json.loads(line)
        except ValueError:  # a killed run leaves half a line, and the next one takes it away
            continue
        if isinstance(step, dict) and isinstance(step.get("step"), int) and step["step"] > 0:
            yield step


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
