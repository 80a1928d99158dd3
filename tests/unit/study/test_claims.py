"""Findings are held to what the study will have, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.study.make import make_study_plan
from megatron_ext.study.render import headline
from tests.support.pencil_project import PencilProject, refused

SUITE = """\
suite: pencils
tasks:
  - {task: held-out}
  - {task: "lm-eval:digits", domain: math}
aggregates:
  - {name: average, mean_of: [digits]}
"""


def ask(study: PencilProject, **changed: str) -> None:
    """Writes a study with one finding, on lines of its own."""
    Path("suite.yaml").write_text(SUITE)
    asked = {"better": "[more-chat]", "than": "[plain-chat]", "stage": "sft", "metric": "average"} | changed
    keys = "\n        ".join(f"{key}: {value}" for key, value in asked.items())
    finding = f"findings:\n  - name: one\n    says: So.\n    comparisons:\n      - {keys}\nbaseline:"
    study.edit("study.yaml", "baseline:", finding)


def refusal() -> str:
    return refused(lambda: make_study_plan("study.yaml"))


@pytest.mark.parametrize("metric", ["average", "digits", "math", "held-out", "held-out/web"])
def test_aggregates_tasks_their_parts_and_domains_may_be_asked_for(study: PencilProject, metric: str) -> None:
    ask(study, metric=metric)
    assert make_study_plan("study.yaml").findings[0].comparisons[0].metric == metric


def test_a_finding_whose_arms_are_not_all_chosen_is_named_as_left_out(study: PencilProject) -> None:
    ask(study)
    plan = make_study_plan("study.yaml", arms=("plain*",))
    assert (plan.findings, plan.findings_left_out) == ((), ("one",))
    assert headline(plan).endswith("left out, for not all their arms are here: one")
    assert make_study_plan("study.yaml").findings_left_out == ()


def test_a_metric_that_no_suite_has_is_refused_with_the_nearest_and_its_line(study: PencilProject) -> None:
    ask(study, metric="digit")
    line = Path("study.yaml").read_text().splitlines().index("        metric: digit") + 1
    assert refusal() == (
        f"study.yaml:{line}: findings[0].comparisons[0].metric: digit: no aggregate, task or domain of suite pencils; "
        "did you mean digits? there are: average, held-out, digits, math"
    )


def test_a_suite_that_does_not_judge_the_kind_is_refused(study: PencilProject) -> None:
    ask(study, suite="pencil")
    assert refusal().endswith(
        "findings[0].comparisons[0].suite: pencil: judges no sft stage; did you mean pencils? there are: pencils"
    )


def test_a_stage_that_an_arm_does_not_have_is_refused(study: PencilProject) -> None:
    ask(study, than="[plain]")
    assert refusal().endswith(
        "findings[0].comparisons[0].stage: sft: plain has no such stage; all its arms have: pretrain"
    )


def test_a_kind_of_stage_that_no_suite_judges_is_refused(study: PencilProject) -> None:
    ask(study, stage="pretrain")
    assert "comparisons[0].stage: pretrain: no suite judges this kind of stage; name one in evaluate.pretrain" in (
        refusal()
    )


def test_an_arm_is_not_compared_with_itself(study: PencilProject) -> None:
    ask(study, than="[plain-chat, more-chat]")
    assert "better and than both name more-chat: no arm is compared with itself" in refusal()
