"""`megatron-ext study report` on the command line."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ext.cli.verb import Verb
from megatron_ext.study.arguments import study_arguments

if TYPE_CHECKING:
    from megatron_ext.study.study_plan import StudyPlan


def _report_arguments(add: Any) -> None:
    study_arguments(add)
    add("-o", "--output", type=Path, metavar="FILE", help="where to (default: RUN_ROOT/studies/NAME/report.html)")
    add(
        "--format",
        choices=("html", "md", "csv", "json"),
        help="default: by FILE's ending, else html; without FILE the others are printed",
    )


def _report(arguments: argparse.Namespace) -> None:
    from megatron_ext.study.launchers import finders
    from megatron_ext.study.page.write import FORMATS, format_of, write_report
    from megatron_ext.study.report.make import make_report

    plan = _plan(arguments)
    form = format_of(arguments.output, arguments.format)
    report = make_report(plan, finders(Path(plan.run_root)), command=shlex.join(["megatron-ext", *sys.argv[1:]]))
    output = arguments.output
    if output is None and form != "html":
        print(FORMATS[form](report), end="")
        return
    output = output or Path(plan.run_root) / "studies" / plan.name / "report.html"
    size = write_report(report, output, form)
    missing = f"; {len(report.missing)} stages and evaluations have not run" if report.missing else ""
    print(f"{output}: {size:,} bytes{missing}")


def _plan(arguments: argparse.Namespace) -> StudyPlan:
    """The study as planned now; of a study.json as it was run, for places that do not have its data."""
    from data_tools.errors import UsageError
    from megatron_ext.study.make import make_study_plan
    from megatron_ext.study.study_plan import read_study_plan

    if arguments.study.suffix != ".json":
        return make_study_plan(
            arguments.study,
            site=arguments.site,
            run_root=arguments.run_root,
            seeds=arguments.seeds,
            arms=arguments.arms,
        )
    if arguments.seeds or arguments.arms or arguments.site:
        raise UsageError(f"study report: {arguments.study} is planned; --seeds, --arms and --site are of a study file.")
    plan = read_study_plan(arguments.study)
    return plan.model_copy(update={"run_root": str(arguments.run_root)}) if arguments.run_root else plan


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
