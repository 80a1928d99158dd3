"""`megatron-ext evaluate`: a checkpoint, tasks, results; on one rank, or the ranks of torchrun."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from data_tools.errors import UsageError, UserError
from megatron_ext.evaluate.options import Options, read_options
from megatron_ext.evaluate.suite import Suite, read_suite
from megatron_ext.evaluate.tasks import TaskRequest, kind_named, read_request, refuse_same_names
from megatron_ext.rollout.cli import find_checkpoint
from megatron_ext.runtime.launch import Launch

_OTHER_RANK_WAIT_S = 5.0
"""Errors are mostly the same on all ranks: the others let the main rank speak first."""


def add_arguments(add: Any) -> None:
    """Declares the options of `megatron-ext evaluate`."""
    add(
        "checkpoint",
        nargs="?",
        type=Path,
        metavar="CHECKPOINT",
        help="a stage's folder, or one of its checkpoints/step_N",
    )
    add(
        "--tasks",
        nargs="+",
        default=[],
        metavar="TASK",
        help="held-out, held-out:PREFIX, verifiable:FILE, lm-eval:TASK, evalplus:DATASET, nemo-skills:BENCHMARK",
    )
    add("--suite", type=Path, metavar="FILE", help="tasks and what is made of them, such as recipes/evaluate/base.yaml")
    add("--include-path", metavar="DIR", help="a folder of lm-eval task files of your own")
    add("--num-fewshot", type=int, metavar="N", help="examples before each question of lm-eval's tasks")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="an option, such as samples=4; repeatable")
    add("--name", metavar="NAME", help="of the results' folder (default: step and a hash of what is asked)")
    add(
        "--set-aside",
        action="store_true",
        help="move what is in that folder of other weights, or of another question, to NAME.before_N (default: refuse)",
    )
    add("--output", type=Path, metavar="DIR", help="below which it lies (default: evaluations/ of the stage)")
    add(
        "--contaminated",
        choices=("refuse", "mark"),
        help="what becomes of a benchmark that was trained on (default: refuse)",
    )
    add(
        "--overlap",
        nargs="+",
        default=[],
        type=Path,
        metavar="REPORT",
        help="reports of data-tools overlap (beside a benchmark, *.overlap.jsonl is found)",
    )
    add(
        "--write-items",
        type=Path,
        metavar="DIR",
        help="write questions and answers of lm-eval's tasks for data-tools overlap, and evaluate nothing",
    )
    add("--tensor-model-parallel-size", type=int, default=1, metavar="N", help="ranks that share a layer (default: 1)")
    add("--backend", choices=("auto", "local", "te"), default="auto", help="whose layers (default: auto)")
    add("--show", nargs="+", type=Path, default=[], metavar="RESULTS", help="print one evaluation, or compare two")
    add("--items", type=int, metavar="N", help="with --show: the first N items of each task, with their answers")
    add("--json", action="store_true", help="print the results alone, as JSON")


def main_evaluate(args: argparse.Namespace) -> int:
    """Evaluates, or shows what was found.

    Raises:
        UserError: What is wrong, before anything is computed where that can be known.
    """
    launch = Launch.from_environment()
    try:
        return _show(args) if args.show else _evaluate(args, launch)
    except UserError as error:
        if launch.is_main:
            raise
        time.sleep(_OTHER_RANK_WAIT_S)
        print(f"rank {launch.rank}: error: {error}", file=sys.stderr)
        return error.exit_code


def _evaluate(args: argparse.Namespace, launch: Launch) -> int:
    if args.items is not None:
        raise UsageError("evaluate: --items shows what was found: --show RESULTS --items N.")
    requests, suite = _requests(args)
    if args.write_items:
        return _write_items(requests, args.write_items) if launch.is_main else 0
    checkpoint = find_checkpoint(args.checkpoint)
    for kind in dict.fromkeys(request.kind for request in requests):
        kind_named(kind).check([request for request in requests if request.kind == kind], checkpoint)
    from megatron_ext.runtime.warnings import quiet_known_warnings

    quiet_known_warnings()
    # These import torch and Megatron-Core, which `--help` does not need.
    from megatron_ext.evaluate.evaluation import (
        Question,
        evaluate,
        evaluate_by_others,
        evaluation_folder,
        finished_results,
    )
    from megatron_ext.evaluate.external_task import KINDS_OF_OTHERS, read_all, taken_up
    from megatron_ext.evaluate.loading import opened_checkpoint
    from megatron_ext.evaluate.results import write_results
    from megatron_ext.evaluate.table import print_results

    question = Question(
        tuple(requests),
        _options(args, suite),
        suite=suite.name if suite else None,
        aggregate=suite.aggregate if suite else None,
    )
    folder = evaluation_folder(checkpoint, question, root=args.output, name=args.name)
    results = finished_results(folder, question, checkpoint, sets_aside=args.set_aside)
    read_all(requests, folder)  # a file that cannot be read is better known now than behind the other tasks

    def say(text: str) -> None:
        if launch.is_main:
            print(text, file=sys.stderr, flush=True)

    if results is not None and (more := taken_up(results, question, folder)) is not results:
        say(f"finished before: {folder}; {len(more.tasks) - len(results.tasks)} results of other programs taken up")
        results = more
        if launch.is_main:
            write_results(folder, results)
    elif results is not None:
        say(f"finished before: {folder}. Nothing to do; remove the folder to evaluate again.")
    elif all(request.kind in KINDS_OF_OTHERS for request in requests):
        if not launch.is_main:
            return 0
        results = evaluate_by_others(checkpoint, question, folder, say=say)
    else:
        with opened_checkpoint(
            checkpoint, launch, tensor_model_parallel_size=args.tensor_model_parallel_size, backend=args.backend
        ) as opened:
            results = evaluate(opened, question, folder, say=say)
    if launch.is_main:
        print_results(results, folder, as_json=args.json)
    return 0


def _requests(args: argparse.Namespace) -> tuple[list[TaskRequest], Suite | None]:
    if args.checkpoint is None and args.write_items is None:
        raise UsageError("evaluate: name a checkpoint, or --show RESULTS.")
    if args.checkpoint is not None and args.write_items is not None:
        raise UsageError("evaluate: --write-items reads tasks only; leave CHECKPOINT out.")
    suite = read_suite(args.suite) if args.suite else None
    options = _options(args, suite)
    requests = [read_request(text, options) for text in args.tasks]
    if suite is not None:
        requests += suite.requests(options)
    if not requests:
        raise UsageError("evaluate: name tasks: --tasks held-out verifiable:FILE, or --suite FILE.")
    refuse_same_names(requests)
    return requests, suite


def _write_items(requests: list[TaskRequest], folder: Path) -> int:
    from megatron_ext.evaluate.lm_eval_contamination import write_items
    from megatron_ext.evaluate.lm_eval_task import known_tasks

    of_harness = [request for request in requests if request.kind == "lm-eval"]
    if not of_harness:
        raise UsageError("evaluate: --write-items is for tasks of lm-eval; prompt files are compared as they are.")
    for request, loaded in known_tasks(of_harness):
        for file in write_items(request, loaded, folder):
            print(file)
    return 0


def _options(args: argparse.Namespace, suite: Suite | None) -> Options:
    said = {
        "contaminated": args.contaminated,
        "overlap": tuple(map(str, args.overlap)) or None,
        "include_path": args.include_path,
        "num_fewshot": args.num_fewshot,
    }
    base = (suite.options if suite else {}) | {key: value for key, value in said.items() if value is not None}
    return read_options(args.set, base=base)


def _show(args: argparse.Namespace) -> int:
    from megatron_ext.evaluate.items_view import print_items
    from megatron_ext.evaluate.results import read_results
    from megatron_ext.evaluate.table import print_comparison, print_results

    if args.checkpoint is not None or args.tasks or args.suite:
        raise UsageError("evaluate: --show reads results only; leave checkpoint, --tasks and --suite out.")
    if len(args.show) > 2:
        raise UsageError(f"evaluate: --show takes one evaluation, or two to compare, not {len(args.show)}.")
    found = [read_results(path) for path in args.show]
    folders = [path if path.is_dir() else path.parent for path in args.show]
    if args.items is not None:
        if len(found) != 1 or args.items < 1:
            raise UsageError("evaluate: --items N, at least 1, shows items of one evaluation.")
        print_items(folders[0], most=args.items, as_json=args.json)
    elif len(found) == 1:
        print_results(found[0], folders[0], as_json=args.json)
    else:
        print_comparison(found[0], found[1], folders[0], folders[1], as_json=args.json)
    return 0
