"""The study's pretraining: arms that differ in their data alone, one shared stage, budgets of 1T tokens each."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import load_recipe

FOLDER = Path(__file__).parents[3] / "recipes/front_loading/pretrain"
ARMS = ["base", "shq", "ldq", "lmq"]
SCHEDULES = {"600B + 400B": ARMS, "from token 0": [f"{arm}_v1" for arm in ARMS]}
REASONING = 80_000_000_000


@cache
def plan(name: str) -> StagePlan:
    return make_stage_plan(load_recipe(FOLDER / f"{name}.yaml"), may_be_provisional=True)


def passes(name: str, source: str) -> float:
    (found,) = [source_plan for source_plan in plan(name).data.sources if source_plan.source == source]
    return found.epochs


def without_allocation(name: str) -> dict[str, Any]:
    recipe = load_recipe(FOLDER / f"{name}.yaml").recipe.model_dump()
    del recipe["data"]["blend"]
    return recipe


@pytest.mark.parametrize(
    ("one", "other"), [pair for arms in SCHEDULES.values() for pair in combinations(arms, 2)], ids=str
)
def test_two_arms_of_a_schedule_differ_in_their_blend_alone(one: str, other: str) -> None:
    assert without_allocation(one) == without_allocation(other)
    assert plan(one).stage_id != plan(other).stage_id


def test_the_two_schedules_differ_in_their_budget_alone() -> None:
    for one, other in zip(*SCHEDULES.values(), strict=True):
        first, second = without_allocation(one), without_allocation(other)
        assert {key for key in first if first[key] != second[key]} == {"parent", "budget"}


def test_the_four_arms_continue_one_stage() -> None:
    shared = plan("base_600b").stage_id
    assert {plan(arm).parent.stage_id for arm in ARMS} == {shared}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [*ARMS, *SCHEDULES["from token 0"]])
def test_every_arm_reads_1t_tokens_under_one_decay(name: str) -> None:
    batch, schedule = plan(name).batch, plan(name).schedule
    assert (
        batch.end_tokens == schedule.horizon_samples * schedule.sample_tokens == 158_946 * 768 * batch.sequence_length
    )
    assert abs(batch.end_tokens - 10**12) < batch.tokens_per_step


def test_an_arm_as_one_stage_of_phases_reads_what_its_chain_reads() -> None:
    chain, whole = [plan("base_600b"), plan("lmq")], plan("lmq_phases")
    given = [{source.source: source.samples for source in phase.sources} for phase in whole.data.all_phases()]
    assert given == [{source.source: source.samples for source in part.data.sources} for part in chain]
    assert whole.schedule == chain[0].schedule
    assert whole.batch.total_steps == sum(part.batch.total_steps for part in chain)


@pytest.mark.parametrize("arm", ARMS[1:])
def test_an_arm_reads_80b_reasoning_tokens_or_200b_from_token_0(arm: str) -> None:
    for name, tokens in ((arm, REASONING), (f"{arm}_v1", 2.5 * REASONING)):
        sources = [source for source in plan(name).data.sources if source.source != "nemotron_base"]
        read = sum(source.samples for source in sources) * plan(name).batch.sequence_length
        assert read == pytest.approx(tokens, rel=1e-4)


def test_shq_is_repeated_as_often_as_the_study_s_numbers_say() -> None:
    assert 5.5 <= passes("shq", "openthoughts3") <= 6.7
    assert 13 <= passes("shq_v1", "openthoughts3") <= 17


def test_ldq_is_read_less_than_once() -> None:
    assert passes("ldq", "nemotron_sft_math") == pytest.approx(0.24, abs=0.01)
    assert passes("ldq_v1", "nemotron_sft_math") == pytest.approx(0.6, abs=0.01)


def test_the_demo_s_second_parts_continue_one_first_part() -> None:
    first, second = (load_recipe(FOLDER.parents[1] / f"demo/{name}_40.yaml") for name in ("base", "shq"))
    assert first.parent is not None
    assert second.parent is not None
    assert first.parent.path == second.parent.path
    assert first.recipe.model_copy(update={"data": None}) == second.recipe.model_copy(update={"data": None})


def test_what_the_paper_does_not_state_of_rl_is_the_default_of_its_trainer() -> None:
    """Source: veRL's actor: torch's AdamW(betas=(0.9, 0.999), weight_decay=1e-2), token-mean, clip 0.2, low_var_kl."""
    recipe = load_recipe(FOLDER.parent / "rl/grpo_crossthink.yaml").recipe
    optimizer = recipe.optimizer
    assert recipe.rl is not None
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.weight_decay) == (0.9, 0.999, 1e-8, 0.01)
    assert (optimizer.clip_grad, recipe.rl.clip_low, recipe.rl.clip_high) == (1.0, 0.2, 0.2)
    assert (recipe.rl.aggregation, recipe.rl.kl.estimator, recipe.rl.advantage) == ("token", "k3", "mean-std")
