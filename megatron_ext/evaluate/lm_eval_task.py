"""Tasks of the Language Model Evaluation Harness, run on our engine; its numbers in our form of results."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.chat_template_files import template_source
from data_tools.errors import DataError, UsageError
from megatron_ext.evaluate.contamination import require_clean
from megatron_ext.evaluate.lm_eval_checks import require_possible
from megatron_ext.evaluate.lm_eval_contamination import contamination_of_tasks
from megatron_ext.evaluate.lm_eval_tasks import LoadedTasks, load_tasks, require_known, seed_as_harness
from megatron_ext.evaluate.tasks import TaskRequest
from megatron_ext.training.file_list import read_plan

if TYPE_CHECKING:
    from megatron_ext.evaluate.evaluation import Evaluation
    from megatron_ext.evaluate.results import TaskResult

_BOOTSTRAPS = 1_000
"""Of metrics that have no closed form of a standard error. The harness's own 100,000 take minutes, while other ranks
wait, and give the same first digit."""

_EXTRA = ("metric", "generation_kwargs")
"""Keys of a suite's entry beside the options: the headline metric, and how answers are sampled."""


def check(requests: Sequence[TaskRequest], checkpoint: Path) -> None:
    """Refuses what could not run, and loads the data of the rest; without torch.

    Raises:
        UserError: As `lm_eval_tasks` and `lm_eval_checks` do; or the checkpoint has no chat template.
    """
    for request in requests:
        unknown = sorted(set(request.extra) - set(_EXTRA))
        if unknown:
            raise UsageError(
                f"task {request.task}: {', '.join(unknown)}: no such key; beside the options there are "
                f"{', '.join(_EXTRA)}."
            )
        if request.options.chat:
            template_source(checkpoint / "tokenizer", None)
    problems = []
    trained = read_plan(checkpoint).batch.sequence_length
    for request, loaded in known_tasks(requests):
        require_possible(request, loaded, request.options.max_length or trained)
        try:
            for _, members in loaded.parts(request.argument):
                known = contamination_of_tasks(request, loaded, members, checkpoint)
                require_clean(request, known, _documents(loaded, members, request.options.limit))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))


def known_tasks(requests: Sequence[TaskRequest]) -> list[tuple[TaskRequest, LoadedTasks]]:
    """Requests with their tasks, whose data are loaded; all names are looked up first.

    Raises:
        UserError: As `lm_eval_tasks` does; of all tasks whose data cannot be had at once.
    """
    by_folder: dict[Path | None, list[str]] = {}
    for request in requests:
        by_folder.setdefault(_folder(request), []).append(request.argument)
    for folder, names in by_folder.items():
        require_known(names, folder)
    found, problems = [], []
    for request in requests:
        try:
            found.append((request, loaded_tasks(request)))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return found


def run(requests: Sequence[TaskRequest], evaluation: Evaluation) -> list[TaskResult]:
    """Runs all requests of the kind. All ranks must call this."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # what it warns of stands in the results' notes
    return [result for request in requests for result in _run_one(request, evaluation)]


def loaded_tasks(request: TaskRequest) -> LoadedTasks:
    """A request's tasks with their data, loaded once."""
    return load_tasks(request.argument, _folder(request), asked_as=request.name)


def _folder(request: TaskRequest) -> Path | None:
    return Path(request.options.include_path) if request.options.include_path is not None else None


def _run_one(request: TaskRequest, evaluation: Evaluation) -> list[TaskResult]:
    from lm_eval.evaluator import evaluate

    from megatron_ext.evaluate.lm_eval_engine import engine_lm
    from megatron_ext.evaluate.lm_eval_results import keep_samples, task_results

    options, loaded = request.options, loaded_tasks(request)
    contamination = {  # before hours are spent; a running stage may remove its checkpoint
        name: contamination_of_tasks(request, loaded, members, evaluation.opened.path)
        for name, members in loaded.parts(request.argument)
    }
    notes = _prepare(request, loaded)
    seed_as_harness()
    documents = _documents(loaded, list(loaded.tasks), options.limit)
    evaluation.say(f"{request.task}: {documents:,} documents in {len(loaded.tasks):,} tasks")
    os.environ["DISABLE_MULTIPROC"] = "1"  # a pool forked out of a process that holds a GPU; read at each bootstrap
    count = _requests(loaded, options.limit)
    with (
        engine_lm(evaluation.opened, options, items=evaluation.requests, label=request.name, requests=count) as lm,
        contextlib.redirect_stdout(sys.stderr),  # the harness speaks where --json prints
    ):
        found = evaluate(
            lm=lm,
            task_dict={"tasks": dict(loaded.tasks), "groups": dict(loaded.groups)},
            limit=options.limit,
            bootstrap_iters=_BOOTSTRAPS if evaluation.is_main else 0,
            log_samples=True,
            apply_chat_template=options.chat,
            fewshot_as_multiturn=options.chat,
        )
    if evaluation.is_main:
        keep_samples(request, loaded, found, evaluation.items)
    return task_results(
        request,
        loaded,
        found,
        notes=[*notes, *lm.cuts.notes(lm.max_length)],
        max_length=lm.max_length,
        contamination=contamination,
    )


def _prepare(request: TaskRequest, loaded: LoadedTasks) -> list[str]:
    """Sets few-shot examples, seeds and sampling, as the harness's own command does; says what a task does not take."""
    notes = []
    asked, kwargs = request.options.num_fewshot, request.extra.get("generation_kwargs")
    for name, task in loaded.tasks.items():
        own = task.get_config("num_fewshot")
        if asked is not None and own == 0 and asked != 0:
            notes.append(f"{name} fixes num_fewshot at 0, so it was not asked with {asked}")
        elif asked is not None or own is None:
            task.set_config(key="num_fewshot", value=asked or 0)
        task.set_fewshot_seed(seed=request.options.seed)
        if kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=dict(kwargs), update=True)
    return notes


def _documents(loaded: LoadedTasks, members: Sequence[str], limit: int | None) -> int:
    counts = [len(loaded.tasks[member].eval_docs) for member in members]
    return sum(min(count, limit or count) for count in counts)


def _requests(loaded: LoadedTasks, limit: int | None) -> int:
    """What a task's documents will ask, if each has as many choices as the first."""
    total = 0
    for task in loaded.tasks.values():
        documents = min(len(task.eval_docs), limit or len(task.eval_docs))
        first = task.eval_docs[0] if documents else {}
        choices = len(task.doc_to_choice(first)) if task.OUTPUT_TYPE == "multiple_choice" else 1
        total += documents * choices * int(task.get_config("repeats") or 1)
    return total
