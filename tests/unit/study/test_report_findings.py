"""Verdicts follow from intervals alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from megatron_ext.recipe.study_schema import ComparisonRecipe, FindingRecipe
from megatron_ext.study.report.evaluated import read_evaluations, rows_of
from megatron_ext.study.report.findings import findings_of
from megatron_ext.study.report.headline import headline_of
from megatron_ext.study.report.numbers import Comparison
from megatron_ext.study.report.table import evaluated_suites
from megatron_ext.study.study_plan import StudyPlan
from tests.support.study_on_disk import TASKS, MadeUp, study_plan, write_evaluation


def evaluated_study(folder: Path, chances: dict[str, float], *, items: int = 100, seeds: int = 1) -> StudyPlan:
    """A study whose fine-tuned stages were evaluated, each with this chance of a right answer."""
    (folder / "runs").mkdir()
    plan = study_plan(folder / "runs", seeds=seeds)
    for base, chance in chances.items():
        for stage in plan.stages_after(f"{base}-shq", "sft"):
            write_evaluation(folder / "runs", stage, MadeUp(dict.fromkeys(TASKS, chance)), items=items)
    return plan


def compared(
    plan: StudyPlan,
    better: str = "lmq-shq",
    than: str = "base-shq",
    *,
    expect: Literal["higher", "equal"] = "higher",
    within: float | None = None,
    stage: Literal["pretrain", "sft", "rl"] = "sft",
    metric: str = "average",
) -> Comparison:
    asked = ComparisonRecipe(better=(better,), than=(than,), stage=stage, metric=metric, expect=expect, within=within)
    finding = FindingRecipe(name="one", says="x", comparisons=(asked,))
    suites = evaluated_suites(plan, rows_of(plan), read_evaluations(plan))
    found = findings_of(plan.model_copy(update={"findings": (finding,)}), suites)
    assert found[0].verdict == found[0].comparisons[0].verdict
    return found[0].comparisons[0]


def test_an_interval_above_0_shows(tmp_path: Path) -> None:
    one = compared(evaluated_study(tmp_path, {"base": 0.2, "lmq": 0.8}))
    assert one.verdict == "shows"
    assert one.delta is not None
    assert one.delta.low is not None
    assert one.delta.low > 0
    assert one.reason == "the interval is above 0; of items alone: with one seed nothing is known of others"
    assert (one.seeds, one.items) == ((1, 1), 300)


def test_an_interval_below_0_shows_the_opposite(tmp_path: Path) -> None:
    assert compared(evaluated_study(tmp_path, {"base": 0.8, "lmq": 0.2})).verdict == "shows the opposite"


def test_an_interval_that_holds_0_cannot_tell(tmp_path: Path) -> None:
    one = compared(evaluated_study(tmp_path, {"base": 0.5, "lmq": 0.6}, items=30))
    assert one.delta is not None
    assert one.delta.low is not None
    assert one.delta.low < 0 < one.delta.value  # better, and perhaps by chance
    assert one.verdict == "cannot tell"
    assert one.reason.startswith("the interval holds 0")


def test_what_is_missing_is_not_run_and_named(tmp_path: Path) -> None:
    one = compared(evaluated_study(tmp_path, {"base": 0.5}))
    assert (one.verdict, one.reason, one.delta) == ("not run", "no number of lmq-shq", None)


def test_an_arm_without_such_a_stage_is_not_run(tmp_path: Path) -> None:
    plan = evaluated_study(tmp_path, {"base": 0.5})
    assert compared(plan, stage="rl").reason == "average after RL has not been evaluated"


def test_a_metric_that_the_suite_does_not_have_is_not_run(tmp_path: Path) -> None:
    one = compared(evaluated_study(tmp_path, {"base": 0.2, "lmq": 0.8}), metric="chess")
    assert (one.verdict, one.reason) == ("not run", "chess after fine-tuning has not been evaluated")


def test_with_several_seeds_the_verdict_is_of_other_seeds_too(tmp_path: Path) -> None:
    one = compared(evaluated_study(tmp_path, {"base": 0.2, "lmq": 0.8}, seeds=2))
    assert (one.verdict, one.reason, one.seeds) == ("shows", "the interval is above 0", (2, 2))


@pytest.mark.parametrize(
    ("chances", "within", "verdict"),
    [
        ({"base": 0.5, "lmq": 0.5}, 60.0, "shows"),
        ({"base": 0.5, "lmq": 0.52}, 1.0, "cannot tell"),  # an interval that holds 0 shows no equality
        ({"base": 0.2, "lmq": 0.8}, 5.0, "shows the opposite"),
    ],
)
def test_equality_needs_an_interval_within_the_margin(
    tmp_path: Path, chances: dict[str, float], within: float, verdict: str
) -> None:
    assert compared(evaluated_study(tmp_path, chances, items=30), expect="equal", within=within).verdict == verdict


def test_equal_rows_are_tied_and_what_was_drawn_is_said(tmp_path: Path) -> None:
    plan = evaluated_study(tmp_path, {"base": 0.0, "ldq": 0.0, "lmq": 0.0})
    (suite,) = (one for one in evaluated_suites(plan, rows_of(plan), read_evaluations(plan)) if one.stage == "sft")
    head = headline_of(suite)
    assert (head.tied, head.drawn) == (("base-shq", "ldq-shq", "lmq-shq"), "items")
