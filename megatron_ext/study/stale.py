"""Whether what an evaluation found is of its stage as it is now: of its last weights, and of the questions of today.

A stage may be trained on, an evaluation may be typed by hand while a stage trains, and a file of questions may be made
anew. asked.json beside the results says what was asked of which weights. What is not there to compare with, such as
the questions on a machine that only reads reports, tells nothing.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_ext.evaluate.results import ASKED
from megatron_ext.evaluate.tasks import content_of_files
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.study.lineage.lines import read_object
from megatron_ext.training.file_list import FILE_LIST, weights_fingerprint


def why_stale(folder: Path) -> str:
    """What of an evaluation is not as its stage has it now; "" where nothing is known to differ.

    Args:
        folder: RUN_ROOT/stages/ID/evaluations/NAME.
    """
    stage = folder.parents[1]
    asked, finished = read_object(folder / ASKED), read_object(stage / STAGE_FILE)
    if not asked:
        return ""
    last = finished.get("checkpoint")
    if last is None:
        return "" if finished else "its results are of a stage that is not finished"
    if Path(last).name != asked.get("step"):
        return f"its results are of {asked.get('step')}, and the stage ended with {Path(last).name}"
    file = stage / last / FILE_LIST
    if (stamp := _stamp(file)) and _fingerprint(file, stamp) != asked.get("fingerprint"):
        return f"its results are of other weights than those of {last} now"
    changed = [one["task"] for one in asked.get("tasks", ()) if _is_changed(one)]
    return f"its questions have changed since: {', '.join(changed)}" if changed else ""


def _is_changed(asked: dict[str, Any]) -> bool:
    """Whether the file of a task holds something else by now; of the harness only itself knows."""
    kind, _, argument = str(asked["task"]).partition(":")
    if kind == "lm-eval" or asked.get("content") is None:
        return False
    files = (argument, f"{argument}.manifest.json", f"{argument}/plan.json")
    now = _content(argument, tuple(_stamp(Path(file)) for file in files))
    return now is not None and now != asked["content"]


def _stamp(file: Path) -> tuple[int, int] | None:
    """Changes whenever a file does: its time in nanoseconds and its bytes; None where it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4096)
def _fingerprint(file_list: Path, stamp: tuple[int, int]) -> str:
    return weights_fingerprint(file_list.parent)


@lru_cache(maxsize=4096)
def _content(argument: str, stamps: tuple[tuple[int, int] | None, ...]) -> str | None:
    return content_of_files(argument)
