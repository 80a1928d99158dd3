"""One evaluation: its folder, what it was asked, its tasks one kind after the other, its results."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from data_tools.atomic_files import take_folder, write_atomically
from data_tools.errors import UsageError, UserError
from megatron_ext.evaluate.external_task import KINDS_OF_OTHERS, found_so_far
from megatron_ext.evaluate.kept_items import (
    REQUESTS,
    SAMPLES,
    KeptItems,
    Line,
    finish_items,
    lines_on_disk,
    remove_parts,
)
from megatron_ext.evaluate.kept_results import keep_results, remove_kept_results, results_on_disk
from megatron_ext.evaluate.loading import OpenedCheckpoint, identity_of
from megatron_ext.evaluate.options import Options
from megatron_ext.evaluate.results import (
    ASKED,
    RESULTS,
    Aggregate,
    CheckpointIdentity,
    EngineFacts,
    Results,
    TaskResult,
    read_results,
    write_results,
)
from megatron_ext.evaluate.tasks import TaskRequest, content_of_files, kind_named
from megatron_ext.runtime.agreement import answer_of_main_rank, raise_on_all_ranks
from megatron_ext.training.file_list import weights_fingerprint

FOLDER = "evaluations"
_KEPT = (SAMPLES, REQUESTS)


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        tasks: In order.
        options: Of the command line.
        suite: Its name; None without one.
        aggregate: Makes numbers of tasks, as the suite defines them.
    """

    tasks: tuple[TaskRequest, ...]
    options: Options
    suite: str | None = None
    aggregate: Callable[[Sequence[TaskResult]], Sequence[Aggregate]] | None = None

    def to_json(self, checkpoint: Path) -> dict[str, Any]:
        """What makes an evaluation another one: its tasks, their options, and the weights."""
        return {
            "fingerprint": weights_fingerprint(checkpoint),
            "step": checkpoint.name,
            "tasks": [
                {
                    "task": one.task,
                    "content": content_of(one),
                    "name": one.name,
                    "options": one.options.model_dump(),
                    "extra": dict(one.extra),
                }
                for one in self.tasks
            ],
            "suite": self.suite,
        }


def content_of(request: TaskRequest) -> str | None:
    """Hash of what a task asks: of its file, or of the manifest of its dataset; None where it names neither."""
    if request.kind == "lm-eval":
        from megatron_ext.evaluate.lm_eval_task import loaded_tasks

        return loaded_tasks(request).content_id
    return content_of_files(request.argument)


@dataclass(frozen=True)
class Evaluation:
    """What a kind works with.

    Attributes:
        opened: Model, plan and process groups.
        folder: Of this evaluation.
        items: Keeps what is found item by item.
        requests: Keeps what the engine has answered to the harness, which makes items of it at a task's end.
        say: Writes a line for people; on the main rank only.
    """

    opened: OpenedCheckpoint
    folder: Path
    items: KeptItems
    requests: KeptItems
    say: Callable[[str], None]

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for all."""
        return bool(dist.get_rank() == 0)


def evaluation_folder(checkpoint: Path, question: Question, *, root: Path | None, name: str | None) -> Path:
    """Where an evaluation lies: `evaluations/NAME` of the stage, or below `root`.

    Args:
        checkpoint: A `step_N` folder.
        question: Gives the name: its step and the hash of what is asked, so that the same command finds it again.
        root: Another folder than the stage's.
        name: Another name.
    """
    asked = json.dumps(question.to_json(checkpoint), sort_keys=True)
    name = name or f"{checkpoint.name}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"
    if Path(name).name != name:
        raise UsageError(f"--name {name}: must be the name of a folder, not a path; --output says below which.")
    return (root or checkpoint.parents[1] / FOLDER) / name


def finished_results(folder: Path, question: Question, checkpoint: Path, *, sets_aside: bool = False) -> Results | None:
    """The results of the same question, if it has been answered in this folder; None if not yet.

    Args:
        folder: Of the evaluation.
        question: What is asked.
        checkpoint: Of which.
        sets_aside: Whether another question's folder counts as none; `evaluate` then moves it aside.

    Raises:
        UsageError: The folder belongs to another question.
    """
    keys = _differing(folder, question, checkpoint)
    if keys and not sets_aside:
        raise UsageError(
            f"{folder}: holds an evaluation that was asked something else ({', '.join(keys)}); give --name another "
            "name, leave it out, or move what is there away with --set-aside."
        )
    if keys or not (folder / ASKED).is_file():
        return None
    return read_results(folder) if (folder / RESULTS).is_file() else None


def _differing(folder: Path, question: Question, checkpoint: Path) -> list[str]:
    """In what a folder was asked something else; [] where it was asked this, or nothing."""
    file = folder / ASKED
    if not file.is_file():
        return []
    there, here = json.loads(file.read_bytes()), json.loads(json.dumps(question.to_json(checkpoint)))
    return [key for key in here if there.get(key) != here[key]]


def evaluate(opened: OpenedCheckpoint, question: Question, folder: Path, *, say: Callable[[str], None]) -> Results:
    """Runs what is asked, and writes the results.

    All ranks must call this, inside the scope of `opened_checkpoint`.

    Args:
        opened: The checkpoint.
        question: What is asked.
        folder: Of the evaluation; what an earlier, killed one has left there is gone on from.
        say: Writes a line for people.
    """
    began = time.monotonic()
    is_main = dist.get_rank() == 0
    lock, error = None, None
    try:
        lock = _taken(folder, question, opened.path) if is_main else None
    except UserError as caught:
        error = caught
    raise_on_all_ranks(error)
    found = answer_of_main_rank({name: lines_on_disk(folder, name) for name in _KEPT} if is_main else {})
    known = answer_of_main_rank(results_on_disk(folder) if is_main else None)
    results: list[TaskResult] = []
    with contextlib.ExitStack() as stack:
        items, asked = (
            stack.enter_context(closing(_kept_items(folder, opened, name, *found[name], say=say))) for name in _KEPT
        )
        evaluation = Evaluation(opened, folder, items, asked, say)
        for kind, requests in _by_kind(question.tasks).items():
            if kind in KINDS_OF_OTHERS:
                results += kind_named(kind).run(requests, evaluation)
                continue
            for request in requests:
                if request.name not in known:
                    known[request.name] = kind_named(kind).run([request], evaluation)
                    if is_main:
                        keep_results(folder, request.name, known[request.name])
                results += known[request.name]
    dist.barrier()
    all_of_it = _results(opened.identity, opened.engine, question, folder, results, seconds=time.monotonic() - began)
    if is_main:
        _finish(folder, all_of_it)
    if lock is not None:
        lock.close()
    dist.barrier()
    return all_of_it


def _kept_items(
    folder: Path, opened: OpenedCheckpoint, name: str, lines: list[Line], cut: int, *, say: Callable[[str], None]
) -> KeptItems:
    """What is kept under a name, with what an earlier, killed evaluation has left; says how much that is."""
    if lines or cut:
        of_requests = "answers to lm-eval" if name == REQUESTS else "items"
        say(
            f"goes on from {len(lines):,} {of_requests} in {folder}"
            + (f"; {cut} cut lines are done again" if cut else "")
        )
    rank, writes = dist.get_rank(), opened.groups.tp.rank() == 0
    return KeptItems(folder, rank=rank, lines=lines, kept_as=name, writes=writes)


def evaluate_by_others(checkpoint: Path, question: Question, folder: Path, *, say: Callable[[str], None]) -> Results:
    """The results of tasks that are all judged by other programs; no model is built. Only the main rank may call this.

    Args:
        checkpoint: A `step_N` folder.
        question: What is asked.
        folder: Of the evaluation.
        say: Writes a line for people.
    """
    results: list[TaskResult] = []
    with _taken(folder, question, checkpoint):
        for requests in _by_kind(question.tasks).values():
            results += found_so_far(requests, checkpoint, folder, say=say)
        none = EngineFacts(
            name="other programs",
            backend="",
            dtype="",
            device="",
            world_size=0,
            tensor_model_parallel_size=0,
            versions={},
        )
        found = _results(identity_of(checkpoint), none, question, folder, results, seconds=0.0)
        _finish(folder, found)
    return found


def _by_kind(tasks: Sequence[TaskRequest]) -> dict[str, list[TaskRequest]]:
    found: dict[str, list[TaskRequest]] = {}
    for request in tasks:
        found.setdefault(request.kind, []).append(request)
    return found


def _finish(folder: Path, results: Results) -> None:
    finish_items(folder)
    write_results(folder, results)
    remove_parts(folder)
    remove_kept_results(folder)


def _taken(folder: Path, question: Question, checkpoint: Path) -> IO[str]:
    """Takes the folder for this process; it is free again when the file is closed, or the process ends."""
    busy = "another process is evaluating this. Wait for it, or give another --name."
    lock = take_folder(folder, busy=busy)
    if _differing(folder, question, checkpoint):  # finished_results has allowed it
        numbers = (folder.with_name(f"{folder.name}.before_{number}") for number in itertools.count(1))
        folder.rename(next(aside for aside in numbers if not aside.exists()))
        lock.close()
        lock = take_folder(folder, busy=busy)
    write_atomically(folder / ASKED, (json.dumps(question.to_json(checkpoint), indent=1) + "\n").encode())
    return lock


def _results(
    identity: CheckpointIdentity,
    engine: EngineFacts,
    question: Question,
    folder: Path,
    tasks: Sequence[TaskResult],
    *,
    seconds: float,
) -> Results:
    options: Mapping[str, Any] = question.options.model_dump()
    return Results(
        name=folder.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["megatron-ext", *sys.argv[1:]]),
        seconds=round(seconds, 3),
        checkpoint=identity,
        engine=engine,
        seed=question.options.seed,
        options=dict(options),
        suite=question.suite,
        tasks=tuple(tasks),
        aggregates=tuple(question.aggregate(tasks)) if question.aggregate is not None else (),
    )
