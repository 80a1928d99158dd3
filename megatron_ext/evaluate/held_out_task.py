"""Not there yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.errors import UsageError
from megatron_ext.evaluate.tasks import TaskRequest

if TYPE_CHECKING:
    from megatron_ext.evaluate.evaluation import Evaluation
    from megatron_ext.evaluate.results import TaskResult


def check(requests: Sequence[TaskRequest], checkpoint: Path) -> None:
    """Refuses what could not run."""
    raise UsageError(f"--tasks {requests[0].task}: this kind is not there yet.")


def run(requests: Sequence[TaskRequest], evaluation: Evaluation) -> list[TaskResult]:
    """Runs all requests of the kind. All ranks must call this."""
    raise AssertionError("refused by check")
