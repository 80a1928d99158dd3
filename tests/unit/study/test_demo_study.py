"""The demo's study: of the paper's shape, counted by hand, and with something for a report to answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.study.make import make_study_plan
from megatron_ext.study.study_plan import StudyPlan

FILE = Path(__file__).parents[3] / "recipes" / "demo" / "study.yaml"


@pytest.fixture(scope="module")
def plan() -> StudyPlan:
    return make_study_plan(FILE, may_be_provisional=True)


def test_the_graph_has_the_stages_that_a_pencil_counts(plan: StudyPlan) -> None:
    totals = plan.totals
    # one first part, four second parts; two seeds of five SFT and of two RL
    assert totals.unique_stages == 1 + 4 + 2 * 5 + 2 * 2
    # of an arm both seeds share two stages of pretraining: five arms end in SFT, two in RL
    assert (totals.arms, totals.chain_stages) == (7, 5 * (2 + 2) + 2 * (2 + 4))


def test_a_stage_of_every_kind_is_judged_and_some_of_it_by_questions(plan: StudyPlan) -> None:
    assert {plan.stage(one.stage_id).stage for one in plan.evaluations} == {"pretrain", "sft", "rl"}
    assert {part.metric for finding in plan.findings for part in finding.comparisons} == {"base", "shq", "digits"}


def test_the_first_part_is_three_fifths_of_every_base(plan: StudyPlan) -> None:
    for arm in plan.arms:
        first, second = (plan.stage(stage).tokens for stage in arm.chains[0][:2])
        assert first / (first + second) == pytest.approx(0.6)
