"""What a run says at its end, and with which exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import TrainingError, UsageError
from megatron_ext.study.finish import conclude
from megatron_ext.study.state import NodeState
from megatron_ext.study.tasks import make_task, nodes_of
from tests.support.stand_in_study import stand_in_plan


def end(run_root: Path, states: dict[str, str], *, stopped_by: str = "") -> None:
    """The end of a run of those stages of which a state is given; of d nothing was asked."""
    plan = stand_in_plan(run_root, {"a": None, "b": "a", "c": "b"})
    tasks = {node.stage_id: make_task(plan, node, run_root) for node in nodes_of(plan) if node.stage_id[-1] in states}
    found = {f"pretrain-{letter}": NodeState(f"pretrain-{letter}", state, "why") for letter, state in states.items()}
    conclude(plan, tasks, found, stopped_by=stopped_by)


def test_a_run_that_has_finished_everything_says_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end(tmp_path, {"a": "finished", "b": "finished"})
    assert capsys.readouterr().out == "stand_in: 2 of 2 finished\n"


def test_what_could_not_begin_beside_what_has_finished_is_named_and_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        end(tmp_path, {"a": "finished", "b": "waiting", "c": "waiting"})
    assert str(error.value) == (
        "stand_in: 1 of 3 finished, 2 waiting\n"
        "  not begun: pretrain-b, pretrain-c\n"
        "  The stages before are left out of this run: leave out --only, or run those first."
    )


def test_what_failed_is_a_failure_of_training_whatever_else_could_not_begin(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as error:
        end(tmp_path, {"a": "failed", "b": "blocked", "c": "waiting"})
    assert str(error.value).splitlines() == [
        "stand_in: 0 of 3 finished, 1 failed, 1 blocked, 1 waiting",
        "  failed pretrain-a: why",
        "  blocked behind them: pretrain-b",
        "  not begun: pretrain-c",
        "  Run the study again to go on; what is finished stays.",
    ]


def test_a_run_that_was_stopped_says_by_what(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="stand_in: stopped by SIGINT; 0 of 1 finished, 1 waiting"):
        end(tmp_path, {"a": "waiting"}, stopped_by="SIGINT")
