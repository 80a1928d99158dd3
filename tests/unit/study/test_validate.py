"""`validate` refuses of arms, studies and suites what planning them refuses, with data and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.study.validate import validate
from tests.support.pencil_project import PencilProject, refused


def without_data() -> None:
    for file in Path("data").glob("[abcd].manifest.json"):
        file.unlink()


def test_an_arm_and_a_study_are_planned(study: PencilProject) -> None:
    assert validate(Path("study.yaml")) == "study.yaml: ok: study pencil, 4 arms, 5 stages"
    assert validate(Path("more-chat.yaml")) == "more-chat.yaml: ok: arm more-chat, 3 stages"
    study.edit("more-chat.yaml", "[base.yaml, more.yaml, chat.yaml]", "[base.yaml]")
    assert validate(Path("more-chat.yaml")) == "more-chat.yaml: ok: arm more-chat, 1 stage"


def test_a_study_that_confounds_is_not_valid(study: PencilProject) -> None:
    study.edit("study.yaml", "arms: [more*]", "arms: [plain*]")
    study.edit("study.yaml", "{key: data.repeated, stage: pretrain,", "{key: data.repeated, stage: sft,")
    assert "  pretrain data.repeated\n" in refused(lambda: validate(Path("study.yaml")))


@pytest.mark.parametrize("has_data", [True, False])
def test_an_arm_that_leaves_out_a_parent_is_not_valid(study: PencilProject, has_data: bool) -> None:
    study.edit("more-chat.yaml", "[base.yaml, more.yaml, chat.yaml]", "[more.yaml]")
    if not has_data:
        without_data()
    said = "arm more-chat: more.yaml: continue: base.yaml, and in this arm nothing stands before it"
    assert said in refused(lambda: validate(Path("more-chat.yaml")))


@pytest.mark.parametrize("has_data", [True, False])
def test_what_is_set_over_an_arm_is_checked(study: PencilProject, has_data: bool) -> None:
    study.edit("more-chat.yaml", "stages:", "set: {sft: {optimizer.lr: -1}}\nstages:")
    if not has_data:
        without_data()
    assert refused(lambda: validate(Path("more-chat.yaml"))).startswith("more-chat.yaml:2: optimizer.lr: -1 is out of")


def test_without_data_an_arm_and_a_study_are_checked_as_far_as_that_goes(study: PencilProject) -> None:
    without_data()
    assert validate(Path("study.yaml")) == "study.yaml: ok: study pencil, 4 arms, data not built yet"
    assert validate(Path("more-chat.yaml")) == "more-chat.yaml: ok: arm more-chat, 3 stages, data not built yet"


def test_a_suite_says_what_is_not_there(study: PencilProject) -> None:
    assert validate(Path("suite.yaml")) == "suite.yaml: ok: suite pencils, 1 task, 0 means"
    Path("suite.yaml").write_text("suite: one\ntasks: [{task: 'verifiable:q.jsonl'}, {task: 'held-out:data/no'}]\n")
    assert validate(Path("suite.yaml")) == (
        "suite.yaml: ok: suite one, 2 tasks, 0 means; not there yet: verifiable:q.jsonl: no such file of questions, "
        "and no folder of an rl stage; held-out:data/no: no such dataset"
    )
