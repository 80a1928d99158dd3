"""Which rows the tables of a study have, and under which names."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.study.report.judged import rows_of
from megatron_ext.study.report.labels import groups_of
from megatron_ext.study.study_plan import StudyPlan
from tests.support.study_on_disk import study_plan


@pytest.fixture
def plan(tmp_path: Path) -> StudyPlan:
    return study_plan(tmp_path / "runs", seeds=2)


def test_arms_that_share_a_stage_are_one_row(plan: StudyPlan) -> None:
    rows = {(row.stage, row.label): row.arms for row in rows_of(plan)}
    assert rows == {
        ("pretrain", "base"): ("base-shq",),
        ("pretrain", "ldq"): ("ldq-shq",),
        ("pretrain", "lmq"): ("lmq-shq", "lmq-shq-grpo"),
        ("sft", "base-shq"): ("base-shq",),
        ("sft", "ldq-shq"): ("ldq-shq",),
        ("sft", "lmq-shq"): ("lmq-shq", "lmq-shq-grpo"),
        ("rl", "lmq-shq-grpo"): ("lmq-shq-grpo",),
    }


def test_a_row_has_the_last_stage_of_each_seed(plan: StudyPlan) -> None:
    row = next(row for row in rows_of(plan) if row.label == "ldq")
    assert [stage.stage_id for stage in row.stages] == ["pretrain-ldq-0", "pretrain-ldq-1"]
    assert row.recipes == ("recipes/toy/pretrain/first.yaml", "recipes/toy/pretrain/ldq.yaml")


def test_the_baseline_is_one_row_of_each_kind_that_it_reaches(plan: StudyPlan) -> None:
    assert [(row.stage, row.label) for row in rows_of(plan) if row.is_baseline] == [
        ("pretrain", "base"),
        ("sft", "base-shq"),
    ]


def test_an_arm_that_goes_on_from_the_baseline_is_the_baseline_of_later_kinds(plan: StudyPlan) -> None:
    rows = rows_of(plan.model_copy(update={"baseline": "lmq-shq"}))
    assert [row.label for row in rows if row.is_baseline] == ["lmq", "lmq-shq", "lmq-shq-grpo"]


def test_recipes_of_one_name_are_told_apart_by_the_chain(plan: StudyPlan) -> None:
    stages = tuple(
        stage.model_copy(update={"recipe": "recipes/toy/pretrain/base.yaml"}) if "ldq" in stage.stage_id else stage
        for stage in plan.stages
    )
    arms = tuple(
        arm.model_copy(update={"recipes": tuple(one.replace("/ldq.yaml", "/base.yaml") for one in arm.recipes)})
        for arm in plan.arms
    )
    rows = rows_of(plan.model_copy(update={"stages": stages, "arms": arms}))
    assert [row.label for row in rows if row.stage == "pretrain"] == ["base", "first → base", "lmq"]


def test_a_stage_of_the_graph_is_there_once_with_its_seeds_and_the_tokens_before_it(plan: StudyPlan) -> None:
    groups = {group.label: group for group in groups_of(plan, rows_of(plan))}
    assert list(groups) == ["first", "base", "base-shq", "ldq", "ldq-shq", "lmq", "lmq-shq", "lmq-shq-grpo"]
    assert [stage.replicate for stage in groups["first"].stages] == [0, 1]
    assert groups["first"].tokens_before == 0
    assert groups["base"].tokens_before == 2_000  # of the same kind
    assert groups["base-shq"].tokens_before == 0  # fine-tuning begins anew
    assert groups["base-shq"].parent == "pretrain-base-0"
