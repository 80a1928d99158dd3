"""An evaluation counts for a stage if it is of the weights with which that ended, and of the questions of today."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from megatron_ext.study.launcher import Launched, node_folder, write_launched
from megatron_ext.study.launchers import finders
from megatron_ext.study.processes import identity_of
from megatron_ext.study.report.evaluated import read_evaluations
from megatron_ext.study.stale import why_stale
from megatron_ext.study.state import node_states
from megatron_ext.study.study_plan import EvaluationNode, StudyPlan
from megatron_ext.training.file_list import weights_fingerprint
from tests.support.stand_in_study import stand_in_plan

A = "pretrain-a"
NAME = f"{A}.held-1"


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """Ended with step 4; its evaluation asked the questions that lie there."""
    made = tmp_path / "stages" / A
    save(made, "step_4", weights="0123")
    (made / "stage.json").write_text(json.dumps({"checkpoint": "checkpoints/step_4"}))
    (tmp_path / "questions.jsonl").write_text("2 + 2\n")
    (made / "evaluations/held-1").mkdir(parents=True)
    judge(made, "step_4")
    return made


def save(stage: Path, step: str, *, weights: str) -> None:
    checkpoint = stage / "checkpoints" / step
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "files.json").write_text(json.dumps({"__0_0.distcp": {"bytes": 4, "sha256": weights}}))


def judge(stage: Path, step: str) -> None:
    """Leaves what an evaluation of a checkpoint leaves."""
    questions = stage.parents[1] / "questions.jsonl"
    asked = {
        "fingerprint": weights_fingerprint(stage / "checkpoints" / step),
        "step": step,
        "tasks": [
            {"task": "held-out", "content": None},
            {"task": f"verifiable:{questions}", "content": hashlib.sha256(questions.read_bytes()).hexdigest()},
        ],
    }
    (stage / "evaluations/held-1/asked.json").write_text(json.dumps(asked))
    (stage / "evaluations/held-1/results.json").write_text("no results: whoever reads them fails")


def plan(run_root: Path) -> StudyPlan:
    one = EvaluationNode(node_id=f"{A}/held-1", stage_id=A, suite="held.yaml", suite_name="held", folder="held-1")
    return stand_in_plan(run_root).model_copy(update={"evaluations": (one,)})


def state(run_root: Path) -> tuple[str, str]:
    found = node_states(plan(run_root), run_root, finders(run_root))[NAME]
    return found.state, found.reason


def test_results_of_the_last_weights_and_of_todays_questions_count(stage: Path, tmp_path: Path) -> None:
    assert why_stale(stage / "evaluations/held-1") == ""
    assert state(tmp_path) == ("finished", "")


def test_results_of_a_stage_that_was_trained_on_do_not_count(stage: Path, tmp_path: Path) -> None:
    save(stage, "step_8", weights="4567")
    (stage / "stage.json").write_text(json.dumps({"checkpoint": "checkpoints/step_8"}))
    assert state(tmp_path) == ("waiting", "its results are of step_4, and the stage ended with step_8")


def test_results_of_a_stage_that_is_still_trained_do_not_count(stage: Path, tmp_path: Path) -> None:
    (stage / "stage.json").unlink()
    assert state(tmp_path) == ("waiting", "its results are of a stage that is not finished")


def test_results_of_other_weights_of_the_same_step_do_not_count(stage: Path, tmp_path: Path) -> None:
    save(stage, "step_4", weights="trained anew")
    assert state(tmp_path) == ("waiting", "its results are of other weights than those of checkpoints/step_4 now")


def test_results_of_other_questions_do_not_count(stage: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("2 + 3\n")
    os.utime(questions, ns=(1, 1))  # the same size; whoever keeps hashes sees the time alone
    assert state(tmp_path) == ("waiting", f"its questions have changed since: verifiable:{questions}")


def test_what_is_not_there_to_compare_with_tells_nothing(stage: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").unlink()
    (stage / "checkpoints/step_4/files.json").unlink()
    assert why_stale(stage / "evaluations/held-1") == ""


def test_a_report_reads_no_results_that_do_not_count(stage: Path, tmp_path: Path) -> None:
    save(stage, "step_4", weights="trained anew")
    assert read_evaluations(plan(tmp_path)) == {}


def test_an_evaluation_that_fails_anew_says_so_and_not_what_lies_there(stage: Path, tmp_path: Path) -> None:
    save(stage, "step_4", weights="trained anew")
    folder = node_folder(tmp_path, "stand_in", NAME)
    folder.mkdir(parents=True)
    gone = identity_of(os.getpid()) | {"start_ticks": -1}
    write_launched(folder, Launched("local", 1, 0.0, handle=gone))
    (folder / "attempt_1.log").write_text("error: no room\nstudy: exit code 4\n")
    os.utime(stage / "evaluations/held-1/results.json", ns=(1, 1))
    assert state(tmp_path) == ("failed", "exit code 4: no room")
