"""The batch grows in equal token stretches; every number of the stage stays exact."""

from __future__ import annotations

import pytest
from megatron.core.num_microbatches_calculator import StepBatchsizeNumMicroBatchesCalculator

from data_tools.errors import RecipeError
from megatron_ext.plan.make import draft_plan
from megatron_ext.plan.stage_plan import BatchPlan
from tests.support.pencil_project import PencilProject, make_pencil_project

RAMP = (
    "training.global_batch_size=8",
    "training.ramp_start_batch_size=2",
    "training.ramp_increment=2",
    "training.ramp_tokens=288",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> PencilProject:
    return make_pencil_project(tmp_path_factory.mktemp("ramp"))


def batch(project: PencilProject, *overrides: str, world_size: int | None = None) -> BatchPlan:
    return draft_plan(project.load(*RAMP, *overrides), world_size=world_size).batch


def error(project: PencilProject, *overrides: str, world_size: int | None = None) -> str:
    with pytest.raises(RecipeError) as caught:
        draft_plan(project.load(*RAMP, *overrides), world_size=world_size)
    return str(caught.value)


def sizes(plan: BatchPlan) -> list[int]:
    """The samples of every step."""
    taken: list[int] = []
    while len(taken) < plan.total_steps:
        taken.append(plan.batch_size_at(sum(taken)))
    return taken


def test_a_ramp_by_pencil(project: PencilProject) -> None:
    # 640 tokens are 40 samples of 16; three stretches of 6 samples: 2+2+2, 4+4, 6; 20 are left, 2.5 full steps.
    plan = batch(project)
    assert plan.ramp == ((1, 2), (4, 4), (6, 6), (7, 8))
    assert sizes(plan) == [2, 2, 2, 4, 4, 6, 8, 8, 8]
    assert (plan.total_steps, plan.total_samples, plan.total_tokens) == (9, 44, 704)
    assert plan.requested_tokens == 640


def test_what_is_rounded_is_said_and_what_intervals_mean(project: PencilProject) -> None:
    rounded, ramped = draft_plan(project.load(*RAMP)).roundings[:2]
    assert rounded == (
        "budget.tokens 640 is no whole number of steps: rounded to 6 steps of the ramp and 3 full steps of 128 tokens, "
        "704 tokens."
    )
    assert ramped.startswith("training.ramp_tokens 288: the batch grows from 2 to 8 samples in 6 steps. Validations")


def test_the_schedule_counts_the_samples_of_the_ramp(project: PencilProject) -> None:
    assert draft_plan(project.load(*RAMP)).schedule.horizon_samples == 44


def test_planned_samples_of_all_sources_sum_to_the_stage(project: PencilProject) -> None:
    plan = project.plan(*RAMP)
    assert [source.samples for source in plan.data.sources] == [33, 11]


def test_a_stretch_shorter_than_a_step_is_passed_over(project: PencilProject) -> None:
    # Stretches of 16 tokens, one sample each: the first step of 2 samples reads two of them.
    assert batch(project, "training.ramp_tokens=48").ramp == ((1, 2), (2, 6), (3, 8))


@pytest.mark.parametrize(
    ("start", "increment", "full", "ramp_samples"),
    [(2, 2, 8, 18), (4, 4, 32, 1_001), (8, 24, 128, 4_320), (1, 1, 7, 96)],
)
def test_the_rule_is_megatrons(
    start: int, increment: int, full: int, ramp_samples: int, project: PencilProject
) -> None:
    plan = batch(
        project,
        f"training.global_batch_size={full}",
        f"training.ramp_start_batch_size={start}",
        f"training.ramp_increment={increment}",
        f"training.ramp_tokens={16 * ramp_samples}",
        f"budget.tokens={32 * 16 * ramp_samples}",
    )
    rows = range(start, full + 1, increment)
    stretch, rest = divmod(ramp_samples, len(rows) - 1)
    assert rest == 0
    schedule = " ".join(f"{stretch * number}:{size}" for number, size in enumerate(rows))
    core = StepBatchsizeNumMicroBatchesCalculator(1, 1, False, 0, schedule)
    consumed = 0
    for size in sizes(plan):
        core.update(consumed, consistency_check=True)
        assert core.get_current_global_batch_size() == size, f"at {consumed} samples"
        consumed += size
    assert consumed == plan.total_samples


def test_no_step_begins_in_the_middle_of_another(project: PencilProject) -> None:
    with pytest.raises(AssertionError, match="no step of the ramp begins at 3"):
        batch(project).batch_size_at(3)


def test_two_keys_of_three_are_refused(project: PencilProject) -> None:
    with pytest.raises(RecipeError, match=r"ramp_tokens: 288, but a ramp needs ramp_increment too; set it"):
        project.load(*RAMP, "training.ramp_increment=null")
    with pytest.raises(RecipeError, match=r"ramp_increment: 2, but ramp_tokens is 0 and nothing ramps"):
        project.load("training.ramp_increment=2")


def test_an_increment_that_misses_the_full_batch_lists_the_legal_ones(project: PencilProject) -> None:
    with pytest.raises(RecipeError, match="8 - ramp_start_batch_size 2 = 6; legal: 1, 2, 3, 6"):
        project.load(*RAMP, "training.ramp_increment=4")


def test_a_start_that_is_not_below_the_full_batch_is_refused(project: PencilProject) -> None:
    with pytest.raises(RecipeError, match="ramp_start_batch_size: 8 is not below global_batch_size 8"):
        project.load(*RAMP, "training.ramp_start_batch_size=8")


def test_a_size_that_does_not_divide_among_the_ranks_lists_the_legal_ones(project: PencilProject) -> None:
    assert error(project, world_size=4) == (
        "--set training.ramp_start_batch_size=2: training.ramp_start_batch_size: 2 is no multiple of "
        "micro_batch_size 1 x data_parallel_size 4 = 4, so a step of the ramp does not divide into whole "
        "microbatches; legal: 4"
    )
    assert error(project, "training.ramp_start_batch_size=4", "training.ramp_increment=1", world_size=2) == (
        "--set training.ramp_increment=1: training.ramp_increment: 1 is no multiple of micro_batch_size 1 "
        "x data_parallel_size 2 = 2, so a step of the ramp does not divide into whole microbatches; legal: 2, 4"
    )


def test_a_ramp_longer_than_the_budget_is_refused(project: PencilProject) -> None:
    assert error(project, "training.ramp_tokens=640") == (
        "--set training.ramp_tokens=640: training.ramp_tokens: 640 does not end within budget.tokens 640; lower it, or "
        "raise budget.tokens"
    )


def test_a_ramp_is_part_of_the_stage_and_its_absence_is_not(project: PencilProject) -> None:
    plain = project.plan("training.global_batch_size=8")
    assert "ramp" not in plain.meaning["batch"]
    assert plain.batch.ramp == ()
    ramped = project.plan(*RAMP)
    assert ramped.meaning["batch"]["ramp"] == [[1, 2], [4, 4], [6, 6], [7, 8]]
    assert ramped.stage_id != plain.stage_id
    assert project.plan(*RAMP, "training.ramp_tokens=96").stage_id != ramped.stage_id


@pytest.mark.parametrize("steps", ["0-2", "7-5"])
def test_steps_of_a_profile_rise_from_one(steps: str, project: PencilProject) -> None:
    with pytest.raises(RecipeError, match=f"profile.steps: {steps}: steps count from 1 and the first is not behind"):
        project.load(f"profile.steps={steps}")
