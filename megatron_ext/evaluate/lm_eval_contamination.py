"""Whether the files of harness tasks are files that a checkpoint was trained on. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_ext.evaluate.contamination import TrainedSource
from megatron_ext.evaluate.options import Options
from megatron_ext.evaluate.results import Contamination, SourceOverlap


def contamination_of_tasks(tasks: Sequence[Any], sources: Sequence[TrainedSource], options: Options) -> Contamination:
    """What is known of tasks and a checkpoint: only whole files are compared, so nothing is ever clean.

    Args:
        tasks: The harness's objects.
        sources: That were trained on.
        options: Name overlap reports, which are not read here.
    """
    items: dict[str, int] = {}
    trained: dict[str, SourceOverlap] = {}
    for task in tasks:
        hashes = {hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(task)}
        for source in (one for one in sources if hashes & one.files):
            items[task.config.task] = len(task.eval_docs)
            before = trained.get(source.name)
            count = len(task.eval_docs) + (before.items or 0 if before else 0)
            trained[source.name] = SourceOverlap(source=source.name, data_id=source.data_id, items=count)
    unread = "; overlap reports are not read for tasks of lm-eval" if options.overlap else ""
    if not items:
        return Contamination(status="unknown", note=f"not compared with what was trained on{unread}")
    return Contamination(
        status="overlaps",
        items=sum(items.values()),
        sources=tuple(trained.values()),
        note=f"the data of {', '.join(items)} are files that {', '.join(trained)} was made of{unread}",
    )


def _files(task: Any) -> Iterator[Path]:
    """Local files of the split that is asked."""
    split = task.config.test_split or task.config.validation_split
    files = (task.config.dataset_kwargs or {}).get("data_files") or ()
    if isinstance(files, dict):
        files = files.get(split) or ()
    for file in (files,) if isinstance(files, str) else files:
        if Path(file).is_file():
            yield Path(file)
