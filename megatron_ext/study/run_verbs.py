"""`megatron-ext study run`, `status` and `cancel` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_ext.cli.arguments import positive
from megatron_ext.cli.verb import Verb
from megatron_ext.study.arguments import choice_arguments, chosen, study_arguments


def _run_arguments(add: Any) -> None:
    study_arguments(add, takes_record=False)
    choice_arguments(add, default_seeds="those of the study")
    add("--launcher", choices=("local", "slurm"), default="local", help="here, or as jobs of Slurm (default: local)")
    add("--workers", type=positive, metavar="N", help="local: nodes at once (default: 1, or one for each GPU there is)")
    add("--only", choices=("pretrain", "sft", "rl", "evaluate"), help="only nodes of one kind")
    add(
        "--dry-run",
        action="store_true",
        help="print what would begin, with its commands, and stop; slurm: the scripts are written too",
    )


def _run(arguments: argparse.Namespace) -> None:
    from data_tools.errors import UsageError
    from megatron_ext.study.run import RunRequest, default_workers, print_dry_run, run_study

    request = RunRequest(arguments.study, **chosen(arguments), only=arguments.only)
    if arguments.launcher == "slurm":
        from megatron_ext.study.run_slurm import submit_study

        if arguments.workers is not None:
            raise UsageError("study run: --workers concerns --launcher local; Slurm begins what it has room for.")
        submit_study(request, is_dry=arguments.dry_run)
        return
    (print_dry_run if arguments.dry_run else run_study)(request, workers=arguments.workers or default_workers())


def _status_arguments(add: Any) -> None:
    study_arguments(add, takes_record=True)
    add("--watch", action="store_true", help="show it until nothing runs any more, or Ctrl-C")
    add("--json", action="store_true", help="print it as JSON")


def _status(arguments: argparse.Namespace) -> None:
    from data_tools.errors import UsageError
    from megatron_ext.study.status import StudyStatus, print_status, watch_status

    if arguments.watch and arguments.json:
        raise UsageError("study status: --watch is for people, --json for programs; leave one out.")
    name, run_root = _found(arguments)
    study = StudyStatus.open(arguments.study, name, run_root, site=arguments.site)
    if arguments.watch:
        watch_status(study)
    else:
        print_status(study, as_json=arguments.json)


def _cancel_arguments(add: Any) -> None:
    study_arguments(add, takes_record=True)
    add("nodes", nargs="*", metavar="NODE", help="only these: names as status has them, or beginnings of them")
    add(
        "--now",
        action="store_true",
        help="end at once, without saving: the next run goes on from the newest checkpoint",
    )


def _cancel(arguments: argparse.Namespace) -> None:
    from megatron_ext.study.cancel import cancel_study
    from megatron_ext.study.launcher import study_folder
    from megatron_ext.study.launchers import finders

    name, run_root = _found(arguments)
    cancel_study(study_folder(run_root, name), arguments.nodes, finders(run_root), now=arguments.now, say=print)


def _found(arguments: argparse.Namespace) -> tuple[str, Path]:
    """The name of a study and its run root, without planning it.

    Raises:
        UserError: It cannot be read.
    """
    from data_tools.errors import UsageError
    from megatron_ext.recipe.load import DEFAULT_SITE, load_file
    from megatron_ext.recipe.schema import SiteRecipe
    from megatron_ext.recipe.study_load import load_study
    from megatron_ext.study.named import study_named

    if arguments.study.suffix == ".json":
        plan = study_named(arguments.study, site=arguments.site, run_root=arguments.run_root)
        return plan.name, Path(plan.run_root)
    name = load_study(arguments.study).recipe.study
    if arguments.run_root is not None:
        return name, arguments.run_root
    site = load_file(arguments.site or DEFAULT_SITE)
    if not isinstance(site, SiteRecipe):
        raise UsageError(f"--site {arguments.site}: is no site file, such as {DEFAULT_SITE}")
    return name, Path(site.run_root)


RUN_VERBS = (
    Verb(
        "run",
        "study run recipes/demo/study.yaml --workers 2",
        "Train and judge what is unfinished of a study, here or as jobs of Slurm, each stage once, and go on after any "
        "end.",
        _run,
        _run_arguments,
        "study run recipes/demo/study.yaml --dry-run",
    ),
    Verb(
        "status",
        "study status recipes/demo/study.yaml",
        "Say of each stage and evaluation whether it is finished, runs, waits or has failed, and why.",
        _status,
        _status_arguments,
        "study status recipes/demo/study.yaml --watch",
    ),
    Verb(
        "cancel",
        "study cancel recipes/demo/study.yaml",
        "End a running study, or some of its nodes: they save a checkpoint first.",
        _cancel,
        _cancel_arguments,
        "study cancel recipes/demo/study.yaml --now",
    ),
)
