"""Which rows the tables of a study have, and under which names."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.study.report.evaluated import rows_of
from megatron_ext.study.report.labels import groups_of
from megatron_ext.study.study_plan import StudyPlan
from tests.support.study_on_disk import study_plan


@pytest.fixture
def plan(tmp_path: Path) -> StudyPlan:
    return study_plan(tmp_path / "runs", seeds=2)


def test_arms_that_share_a_stage_are_one_row(plan: StudyPlan) -> None:
    rows = {(row.stage, row.label): row.arms for row in rows_of(plan)}
    assert rows == {
        ("pretrain", "base-shq up to pretraining"): ("base-shq",),
        ("pretrain", "ldq-shq up to pretraining"): ("ldq-shq",),
        ("pretrain", "lmq-shq up to pretraining"): ("lmq-shq", "lmq-shq-grpo"),
        ("sft", "base-shq"): ("base-shq",),
        ("sft", "ldq-shq"): ("ldq-shq",),
        ("sft", "lmq-shq"): ("lmq-shq", "lmq-shq-grpo"),
        ("rl", "lmq-shq-grpo"): ("lmq-shq-grpo",),
    }


def test_a_row_has_the_last_stage_of_each_seed(plan: StudyPlan) -> None:
    row = next(row for row in rows_of(plan) if row.label == "ldq-shq up to pretraining")
    assert [stage.stage_id for stage in row.stages] == ["pretrain-ldq-0", "pretrain-ldq-1"]
    assert row.recipes == ("recipes/toy/pretrain/first.yaml", "recipes/toy/pretrain/ldq.yaml")


def test_the_baseline_is_one_row_of_each_kind_that_it_reaches(plan: StudyPlan) -> None:
    assert [(row.stage, row.label) for row in rows_of(plan) if row.is_baseline] == [
        ("pretrain", "base-shq up to pretraining"),
        ("sft", "base-shq"),
    ]


def test_an_arm_that_goes_on_from_the_baseline_is_the_baseline_of_later_kinds(plan: StudyPlan) -> None:
    rows = rows_of(plan.model_copy(update={"baseline": "lmq-shq"}))
    assert [row.label for row in rows if row.is_baseline] == ["lmq-shq up to pretraining", "lmq-shq", "lmq-shq-grpo"]


def named(plan: StudyPlan, names: dict[str, str]) -> StudyPlan:
    """The study with other ids of arms."""
    arms = tuple(arm.model_copy(update={"id": names[arm.id]}) for arm in plan.arms)
    return plan.model_copy(update={"arms": arms, "baseline": None})


def test_a_row_of_several_arms_has_the_beginning_of_their_ids(plan: StudyPlan) -> None:
    names = {"base-shq": "base-shq", "ldq-shq": "ldq-shq", "lmq-shq": "lmq-shq", "lmq-shq-grpo": "lmq-ldq"}
    labels = [row.label for row in rows_of(named(plan, names)) if row.stage == "pretrain"]
    assert labels == ["base-shq up to pretraining", "ldq-shq up to pretraining", "lmq"]


def test_a_row_of_arms_whose_ids_have_nothing_in_common_has_the_recipes_name(plan: StudyPlan) -> None:
    names = {"base-shq": "one", "ldq-shq": "two", "lmq-shq": "three", "lmq-shq-grpo": "four"}
    labels = [row.label for row in rows_of(named(plan, names)) if row.stage == "pretrain"]
    assert labels == ["one up to pretraining", "two up to pretraining", "lmq"]


def test_rows_whose_names_would_be_alike_are_told_apart(plan: StudyPlan) -> None:
    base, lmq = (plan.arm(f"{name}-shq").chains[:1] for name in ("base", "lmq"))
    arms = {"a-x-1": base, "a-y-1": base, "a-x-2": lmq, "a-y-2": lmq}
    one = plan.arm("base-shq")
    arm_plans = tuple(one.model_copy(update={"id": name, "chains": chains}) for name, chains in arms.items())
    rows = rows_of(plan.model_copy(update={"arms": arm_plans, "baseline": None}))
    assert [row.label for row in rows if row.stage == "pretrain"] == ["a", "base"]


def test_a_stage_of_the_graph_is_there_once_with_its_seeds_and_the_tokens_before_it(plan: StudyPlan) -> None:
    groups = {group.label: group for group in groups_of(plan, rows_of(plan))}
    assert list(groups) == [
        "first",
        "base-shq up to pretraining",
        "base-shq",
        "ldq-shq up to pretraining",
        "ldq-shq",
        "lmq-shq up to pretraining",
        "lmq-shq",
        "lmq-shq-grpo",
    ]
    assert [stage.replicate for stage in groups["first"].stages] == [0, 1]
    assert groups["first"].tokens_before == 0
    assert groups["base-shq up to pretraining"].tokens_before == 2_000  # of the same kind
    assert groups["base-shq"].tokens_before == 0  # fine-tuning begins anew
    assert groups["base-shq"].parent == "pretrain-base-0"
