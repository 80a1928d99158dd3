"""Tokens become samples, steps and microbatches exactly; what is rounded is said."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.blend_plan import nearest_multiple, split_samples
from data_tools.errors import RecipeError
from megatron_ext.plan.make import Draft, draft_plan
from tests.support.pencil_project import PencilProject


def draft(project: PencilProject, *overrides: str, world_size: int | None = None) -> Draft:
    return draft_plan(project.load(*overrides), world_size=world_size)


def test_a_budget_of_whole_steps_is_not_rounded(project: PencilProject) -> None:
    plan = draft(project)
    batch = plan.batch
    assert (batch.tokens_per_step, batch.total_steps, batch.total_samples, batch.total_tokens) == (64, 10, 40, 640)
    assert plan.roundings == ()


def test_a_budget_between_steps_goes_to_the_nearest_and_says_so(project: PencilProject) -> None:
    plan = draft(project, "budget.tokens=700")
    assert (plan.batch.requested_tokens, plan.batch.total_steps, plan.batch.total_tokens) == (700, 11, 704)
    assert plan.roundings == ("budget.tokens 700 is 10.94 steps of 64 tokens: rounded to 11 steps, 704 tokens.",)


def test_a_budget_below_half_a_step_is_one_step(project: PencilProject) -> None:
    overrides = ("budget.tokens=3", "schedule={warmup_tokens: 0, decay_tokens: 16}")
    assert draft(project, *overrides).batch.total_steps == 1


def test_a_half_step_goes_up() -> None:
    assert [nearest_multiple(tokens, 64) for tokens in (95, 96, 97)] == [1, 2, 2]


def test_microbatches_are_those_of_one_rank(project: PencilProject) -> None:
    assert draft(project).batch.num_microbatches == 4
    assert draft(project, "training.micro_batch_size=2").batch.num_microbatches == 2
    assert draft(project, world_size=4).batch.num_microbatches == 1


def test_the_schedule_counts_samples(project: PencilProject) -> None:
    schedule = draft(project).schedule
    assert (schedule.warmup_samples, schedule.decay_samples, schedule.horizon_samples) == (8, 16, 40)


def test_a_schedule_without_a_given_decay_decays_after_the_warmup(project: PencilProject) -> None:
    schedule = draft(project, "schedule={style: cosine, decay_tokens: null}").schedule
    assert (schedule.warmup_samples, schedule.decay_samples) == (8, 32)


def test_a_cut_for_trials_leaves_the_schedule_alone(project: PencilProject) -> None:
    cut = draft(project, "training.max_steps=3")
    assert cut.batch.max_steps == 3
    assert cut.schedule == draft(project).schedule


def test_a_warmup_between_samples_is_rounded_and_says_so(project: PencilProject) -> None:
    plan = draft(project, "schedule.warmup_tokens=130")
    assert plan.schedule.warmup_samples == 8
    assert plan.roundings == (
        "schedule.warmup_tokens 130 is 8.12 samples of 16 tokens: rounded to 8 samples, 128 tokens.",
    )


def test_warmup_and_decay_that_do_not_fit_are_refused_with_all_numbers(project: PencilProject) -> None:
    with pytest.raises(RecipeError) as caught:
        draft(project, "schedule.warmup_tokens=400")
    assert str(caught.value) == (
        "--set schedule.warmup_tokens=400: schedule.warmup_tokens: 400 + decay_tokens 256 = 656 do not fit in "
        "the 640 tokens of the budget (10 steps of 64); lower them or raise budget.tokens"
    )


def test_a_warmup_of_the_whole_budget_is_refused(project: PencilProject) -> None:
    with pytest.raises(RecipeError) as caught:
        draft(project, "schedule={style: cosine, warmup_tokens: 640, decay_tokens: null}")
    assert "640 leaves style cosine nothing of the 640 tokens of the budget (10 steps of 64)" in str(caught.value)


def test_intervals_in_tokens_become_steps(project: PencilProject) -> None:
    cadence = draft(project).cadence
    assert (cadence.validation_interval_steps, cadence.checkpoint_interval_steps) == (5, 5)
    assert cadence.validation_samples == 3
    assert cadence.checkpoint_keep_every_steps is None


def test_an_interval_between_steps_is_rounded_and_says_so(project: PencilProject) -> None:
    plan = draft(project, "checkpoint.interval_tokens=100")
    assert plan.cadence.checkpoint_interval_steps == 2
    assert plan.roundings == (
        "checkpoint.interval_tokens 100 is 1.56 steps of 64 tokens: rounded to 2 steps, 128 tokens.",
    )


def test_kept_checkpoints_fall_on_checkpoints(project: PencilProject) -> None:
    plan = draft(project, "checkpoint.keep_every_tokens=512")
    assert plan.cadence.checkpoint_keep_every_steps == 10
    assert plan.roundings == (
        "checkpoint.keep_every_tokens 512 is no multiple of the 5 steps between checkpoints: "
        "rounded to every 10 steps, 640 tokens.",
    )


def test_samples_are_dealt_by_the_largest_remainder() -> None:
    # 10 * (0.55, 0.27, 0.18) = 5.5, 2.7, 1.8: floors 5, 2, 1 leave two samples, for remainders 0.8 and 0.7.
    assert split_samples([0.55, 0.27, 0.18], 10) == (5, 3, 2)


def test_of_equal_remainders_the_first_source_is_served() -> None:
    assert split_samples([0.5, 0.5], 3) == (2, 1)


def test_shares_are_read_as_they_are_written() -> None:
    # 1.5 and 0.5 have equal remainders; in binary 0.3 is a little less than written and 0.1 a little more.
    assert split_samples([0.3, 0.1, 0.6], 5) == (2, 0, 3)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=8), st.integers(1, 10**7))
def test_samples_sum_exactly_and_none_is_off_by_one(weights: list[int], total: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    samples = split_samples(shares, total)
    exact = [Fraction(repr(share)) for share in shares]
    assert sum(samples) == total
    assert all(abs(got - total * share / sum(exact)) < 1 for got, share in zip(samples, exact, strict=True))
