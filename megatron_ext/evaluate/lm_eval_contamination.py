"""Whether items of harness tasks stand in what a checkpoint was trained on. Imports no torch.

A task's items are rendered as the harness renders an example, question and answer, without the examples before it,
and compared by a report of `data-tools overlap` over a file of them. A report is recognised by the hash of that file,
which is made anew here.

The file is JSON lines, one for each document: {"id": NUMBER, of a group "TASK/NUMBER"; "text": question and answer}.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_tools.atomic_files import write_atomically
from megatron_ext.evaluate.contamination import Benchmark, contamination_of
from megatron_ext.evaluate.lm_eval_tasks import LoadedTasks
from megatron_ext.evaluate.results import Contamination
from megatron_ext.evaluate.tasks import TaskRequest

_ADAPTER = "text"
"""Of data_tools, that reads these files."""


def contamination_of_tasks(
    request: TaskRequest, loaded: LoadedTasks, members: Sequence[str], checkpoint: Path
) -> Contamination:
    """What is known of tasks that get one result, and a checkpoint.

    Args:
        request: What was asked; names reports and thresholds, and how many documents of each task count.
        loaded: Its tasks.
        members: Names of those that the result is of.
        checkpoint: A `step_N` folder.

    Raises:
        DataError: A report that was named is no report.
    """
    limit = request.options.limit
    ids: dict[str, frozenset[str]] = {}
    copies: dict[str, frozenset[str]] = {}
    for member in members:
        task = loaded.tasks[member]
        count = min(len(task.eval_docs), limit or len(task.eval_docs))
        ids[member] = frozenset(item_id(member, number, members) for number in range(count))
        for file in _files(task):
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            copies[sha256] = copies.get(sha256, frozenset()) | ids[member]
    name = f"{request.argument if len(members) > 1 else members[0]}.jsonl"
    benchmark = Benchmark(
        f"the items of {name.removesuffix('.jsonl')}",
        hashlib.sha256(items_file(loaded, members)).hexdigest() if request.options.overlap else "",
        frozenset().union(*ids.values()),
        _ADAPTER,
        how=f"megatron-ext evaluate --tasks {request.task} --write-items DIR, then data-tools overlap SOURCE.yaml "
        f"--against DIR/{name} --out NAME.overlap.jsonl for --overlap",
        copies=copies,
    )
    return contamination_of(benchmark, checkpoint, request.options)


def write_items(request: TaskRequest, loaded: LoadedTasks, folder: Path) -> list[Path]:
    """Writes the items of what gets one result into a file of its own; gives the files."""
    files = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, members in loaded.parts(request.argument):
        file = folder / f"{name}.jsonl"
        write_atomically(file, items_file(loaded, members))
        files.append(file)
    return files


def items_file(loaded: LoadedTasks, members: Sequence[str]) -> bytes:
    """The file of some tasks' items; all of them, whatever the limit is."""
    lines = [
        {"id": item_id(member, number, members), "text": text_of(loaded.tasks[member], document)}
        for member in members
        for number, document in enumerate(loaded.tasks[member].eval_docs)
    ]
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode()


def item_id(member: str, number: int, members: Sequence[str]) -> str:
    """Of a document in results: its number, among several tasks with the task's name."""
    return str(number) if len(members) == 1 else f"{member}/{number}"


def text_of(task: Any, document: Any) -> str:
    """Question and right answer of a document, as the harness writes an example; of several answers the first."""
    question, answer = task.doc_to_text(document), task.doc_to_target(document)
    choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else []
    if getattr(task, "multiple_input", False):  # each choice is a question, and the answer goes on behind the right one
        question, choices = choices[question], []
    first = next(iter(answer), "") if isinstance(answer, list) else answer
    said = choices[first] if isinstance(first, int) and 0 <= first < len(choices) else first
    return f"{question}{task.config.target_delimiter}{said}".strip()


def _files(task: Any) -> Iterator[Path]:
    """Local files of the split that is asked."""
    split = task.config.test_split or task.config.validation_split
    files = (task.config.dataset_kwargs or {}).get("data_files") or ()
    if isinstance(files, dict):
        files = files.get(split) or ()
    for file in (files,) if isinstance(files, str) else files:
        if Path(file).is_file():
            yield Path(file)
