"""`megatron-ext study report` on the command line."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from megatron_ext.cli.verb import Verb
from megatron_ext.study.arguments import choice_arguments, chosen, study_arguments


def _report_arguments(add: Any) -> None:
    study_arguments(add, takes_record=True)
    choice_arguments(add, default_seeds="those that were run, else those of the study")
    add("-o", "--output", type=Path, metavar="FILE", help="where to (default: RUN_ROOT/studies/NAME/report.html)")
    add(
        "--format",
        choices=("html", "md", "csv", "json"),
        help="default: by FILE's ending, else html; without FILE the others are printed",
    )


def _report(arguments: argparse.Namespace) -> None:
    from megatron_ext.study.launchers import finders
    from megatron_ext.study.named import study_named
    from megatron_ext.study.page.views import missing_counts
    from megatron_ext.study.page.write import FORMATS, format_of, write_report
    from megatron_ext.study.report.make import make_report

    plan = study_named(arguments.study, **chosen(arguments))
    form = format_of(arguments.output, arguments.format)
    report = make_report(plan, finders(Path(plan.run_root)), command=shlex.join(["megatron-ext", *sys.argv[1:]]))
    output = arguments.output
    if output is None and form != "html":
        print(FORMATS[form](report), end="")
        return
    output = output or Path(plan.run_root) / "studies" / plan.name / "report.html"
    size = write_report(report, output, form)
    missing = missing_counts(report)
    unfinished = f"; stages and evaluations that are not finished: {missing}" if missing else ""
    print(f"{output}: {size:,} bytes{unfinished}")


REPORT_VERBS = (
    Verb(
        "report",
        "study report recipes/demo/study.yaml -o report.html",
        "Say which arm is best, by how much, whether it is noise, what each read and what it cost: one page, or text.",
        _report,
        _report_arguments,
        "study report runs/studies/demo/study.json --format md",
    ),
)
