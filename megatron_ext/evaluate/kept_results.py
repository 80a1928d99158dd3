"""Results of finished tasks while others go on: `results.part.jsonl`, a line {request, results} for each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from data_tools.atomic_files import write_atomically
from megatron_ext.evaluate.results import TaskResult

_FINISHED_TASKS = "results.part.jsonl"


def results_on_disk(folder: Path) -> dict[str, list[TaskResult]]:
    """The results of the tasks that an earlier, killed run has finished, by the name of what was asked."""
    file = folder / _FINISHED_TASKS
    if not file.is_file():
        return {}
    whole, _, _ = file.read_bytes().rpartition(b"\n")  # what a kill has cut is done again
    found = {}
    for line in map(json.loads, whole.splitlines()):
        found[line["request"]] = [TaskResult.model_validate(one) for one in line["results"]]
    write_atomically(file, whole + b"\n" if whole else b"")
    return found


def keep_results(folder: Path, request: str, results: Sequence[TaskResult]) -> None:
    """Keeps the results of a task that is finished. Only the main rank may call this.

    Args:
        folder: Of the evaluation.
        request: Name of what was asked.
        results: Of it.
    """
    line = {"request": request, "results": [one.model_dump(mode="json") for one in results]}
    with (folder / _FINISHED_TASKS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def remove_kept_results(folder: Path) -> None:
    """Removes them, once results.json is there."""
    (folder / _FINISHED_TASKS).unlink(missing_ok=True)
