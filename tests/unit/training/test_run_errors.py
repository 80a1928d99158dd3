"""What the machine lacks ends a run with a message and exit code 4, without a traceback."""

import contextlib
import os
import resource
from pathlib import Path

from megatron_ext import run
from megatron_ext.training import walk  # noqa: F401  (a module that is imported later needs an open file)
from megatron_ext.training.metrics import check_loggers  # noqa: F401
from tests.support.child_process import exit_code_of
from tests.support.pencil_project import PencilProject, make_pencil_project


def _run_with_one_file(project: PencilProject, said: Path) -> None:
    """The recipe and the data are read one file at a time; the lock of the stage's folder takes it."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    with said.open("w") as file, contextlib.redirect_stderr(file):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, free + 2))  # the log and one more
        code = run.main([str(project.recipe), "--site", str(project.site)])
    assert code == 4


def test_too_few_open_files_are_an_error_with_the_limit_and_how_to_raise_it(tmp_path: Path) -> None:
    project = make_pencil_project(tmp_path)
    assert exit_code_of(_run_with_one_file, project, tmp_path / "said") == 0
    said = (tmp_path / "said").read_text()
    assert "plan.json: Too many open files.\n  The checkpoints that are there are untouched. A process" in said
    assert "Raise that (ulimit -n 4096), and run again to go on.\nmegatron_ext.run: exit code 4" in said
