"""What is written for verl and NeMo-RL: keys that they have, values that follow from the recipe, and nothing unsaid."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from megatron.core.optimizer import OptimizerConfig

from megatron_ext.handoff.facts import StageFacts
from megatron_ext.handoff.lost import lost_in_both
from megatron_ext.handoff.nemo_rl import lost_in_nemo_rl, nemo_rl_settings
from megatron_ext.handoff.settings import Lost, Setting, yaml_of
from megatron_ext.handoff.verl import lost_in_verl, verl_settings
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.recipe.keys import key_name, leaf_keys
from megatron_ext.recipe.load import load_recipe
from megatron_ext.recipe.schema import OptimizerRecipe, Recipe, RlRecipe
from tests.support.rl_project import add_rl
from tests.support.toy_project import ToyProject, make_toy_project

DATA = Path(__file__).parents[2] / "data" / "rl_engines"
ENGINES = ("verl", "nemo_rl")
MOST = (
    "rl.importance_cap=2",
    "rl.epochs=2",
    "rl.dynamic_sampling=true",
    "rl.overlong=soft-penalty",
    "rl.overlong_penalty_tokens=4",
    "rl.aggregation=group-sum",
    "rl.kl={estimator: k1, weighted: true, coefficient: 0.001}",
    "training.recompute=full",
    "budget.tokens=1000",
    "rl.max_epochs=2",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    project = make_toy_project(tmp_path_factory.mktemp("handoff"))
    add_rl(project)
    return project


def facts_of(project: ToyProject, *overrides: str) -> StageFacts:
    loaded = load_recipe(project.root / "rl.yaml", overrides=overrides, site=project.root / "site.yaml")
    return StageFacts(make_stage_plan(loaded), Path("/handed"))


def settings_of(facts: StageFacts, engine: str) -> list[Setting]:
    return verl_settings(facts) if engine == "verl" else nemo_rl_settings(facts, stop_ids=frozenset({3, 0}), held_out=8)


def lost_of(facts: StageFacts, engine: str) -> list[Lost]:
    return [*(lost_in_verl(facts) if engine == "verl" else lost_in_nemo_rl(facts)), *lost_in_both(facts)]


def values_of(facts: StageFacts, engine: str) -> dict[str, Any]:
    return {setting.key: setting.value for setting in settings_of(facts, engine)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("overrides", [(), MOST])
def test_every_key_stands_in_the_configuration_that_the_engine_ships(
    project: ToyProject, engine: str, overrides: tuple[str, ...]
) -> None:
    shipped = json.loads((DATA / f"{engine}.json").read_text())
    keys = [setting.key for setting in settings_of(facts_of(project, *overrides), engine)]
    unknown = [key for key in keys if key not in shipped["keys"] and key.rpartition(".")[0] not in shipped["open"]]
    assert not unknown


def test_what_verl_hands_on_to_core_are_fields_of_its_optimizer(project: ToyProject) -> None:
    fields = {field.name for field in dataclasses.fields(OptimizerConfig)}
    handed = [key for key in values_of(facts_of(project), "verl") if ".override_optimizer_config." in key]
    assert {key.rpartition(".")[2] for key in handed} == {"adam_beta1", "adam_beta2", "adam_eps"}
    assert {key.rpartition(".")[2] for key in handed} <= fields


@pytest.mark.parametrize("engine", ENGINES)
def test_every_key_of_the_rl_section_is_carried_over_or_listed_as_lost(project: ToyProject, engine: str) -> None:
    facts = facts_of(project, *MOST)
    told = {setting.recipe_key for setting in settings_of(facts, engine)} | {
        one.recipe_key for one in lost_of(facts, engine)
    }
    leaves = [*leaf_keys(RlRecipe, ("rl",)), *leaf_keys(OptimizerRecipe, ("optimizer",))]
    assert ("rl", "kl", "weighted") in leaves
    missing = [name for path in leaves if not _is_told(name := key_name(path), told)]
    # in the rows of prompts, and in the reward file: prompts' own keys, and `rl.rewards` as a whole
    assert [name for name in missing if not name.startswith(("rl.prompts[0]", "rl.rewards"))] == []


def _is_told(name: str, told: set[str]) -> bool:
    covered = {
        "rl.unusable_prompts": "rl.prompts",  # left out of the rows
        "rl.overlong_prompts": "rl.prompts",
        "rl.kl.weighted": "rl.kl.estimator",  # one name there
        "rl.overlong_penalty_tokens": "rl.overlong",
    }
    return covered.get(name, name) in told


@pytest.mark.parametrize("engine", ENGINES)
def test_every_origin_is_a_key_of_our_recipes(project: ToyProject, engine: str) -> None:
    facts = facts_of(project, *MOST)
    named = [one.recipe_key for one in (*settings_of(facts, engine), *lost_of(facts, engine)) if one.recipe_key]
    paths = leaf_keys(Recipe)
    known = {key_name(path[:length]) for path in paths for length in range(1, len(path) + 1)}
    assert sorted(set(named) - known) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_the_yaml_reads_back_as_the_values(project: ToyProject, engine: str) -> None:
    settings = settings_of(facts_of(project, "optimizer.lr=1e-6", "optimizer.min_lr=1e-7"), engine)
    read = yaml.safe_load(yaml_of(settings, head=[]))
    for setting in settings:
        node = read
        for part in setting.key.split("."):
            node = node[part]
        assert node == setting.value, setting.key


def test_numbers_of_the_stage_are_in_verls_units(project: ToyProject) -> None:
    values = values_of(facts_of(project, "rl.mini_batch_prompts=2", "rl.top_k=5", "optimizer.eps=1e-5"), "verl")
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    expected = {
        "data.train_batch_size": 4,
        "data.max_prompt_length": 32,
        "data.max_response_length": 8,
        f"{actor}.ppo_mini_batch_size": 2,  # prompts
        f"{rollout}.n": 2,
        f"{rollout}.top_k": 5,
        f"{rollout}.max_model_len": 40,
        f"{actor}.optim.override_optimizer_config.adam_eps": 1e-5,
        f"{actor}.kl_loss_coef": 0.001,
        f"{actor}.kl_loss_type": "low_var_kl",
        "trainer.total_training_steps": 6,
        "trainer.test_freq": 3,
    }
    assert {key: values[key] for key in expected} == expected


def test_numbers_of_the_stage_are_in_nemo_rls_units(project: ToyProject) -> None:
    values = values_of(facts_of(project, "rl.mini_batch_prompts=2"), "nemo_rl")
    expected = {
        "grpo.num_prompts_per_step": 4,
        "grpo.num_generations_per_prompt": 2,
        "policy.train_global_batch_size": 4,  # completions: 2 prompts x 2
        "policy.max_total_sequence_length": 40,
        "policy.generation.top_k": None,
        "policy.generation.stop_token_ids": [0, 3],
        "loss_fn.reference_policy_kl_penalty": 0.001,
        "grpo.max_num_steps": 6,
    }
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interval_longer_than_the_stage_is_said_to_save_only_its_end(project: ToyProject, engine: str) -> None:
    notes = [
        setting.note
        for interval in (960, 9_600)  # 3 and 30 of 6 steps
        for setting in settings_of(facts_of(project, f"checkpoint.interval_tokens={interval}"), engine)
        if setting.recipe_key == "checkpoint.interval_tokens" and setting.value in (3, 30)
    ]
    usual = "steps; the last one is saved too"
    assert notes == [usual, f"{usual}; longer than the stage: nothing is saved before its end"]


@pytest.mark.parametrize(
    ("ours", "verl", "nemo_rl"),
    [
        ("mean-std", ("grpo", True), (True, False)),
        ("mean", ("grpo", False), (False, False)),
        ("leave-one-out", ("rloo", False), (False, True)),
    ],
)
def test_advantages_have_their_names(project: ToyProject, ours: str, verl: Any, nemo_rl: Any) -> None:
    facts = facts_of(project, f"rl.advantage={ours}")
    there = values_of(facts, "verl")
    assert (there["algorithm.adv_estimator"], there["algorithm.norm_adv_by_std_in_grpo"]) == verl
    there = values_of(facts, "nemo_rl")
    assert (there["grpo.normalize_rewards"], there["grpo.use_leave_one_out_baseline"]) == nemo_rl


@pytest.mark.parametrize(
    ("ours", "verl", "nemo_rl"),
    [
        ("token", ("token-mean", None), True),
        ("sequence", ("seq-mean-token-mean", None), False),
        ("group-sum", ("seq-mean-token-sum-norm", 8), False),
    ],
)
def test_aggregations_have_their_names(project: ToyProject, ours: str, verl: Any, nemo_rl: bool) -> None:
    facts = facts_of(project, f"rl.aggregation={ours}")
    there = values_of(facts, "verl")
    actor = "actor_rollout_ref.actor"
    assert (there[f"{actor}.loss_agg_mode"], there[f"{actor}.loss_scale_factor"]) == verl
    assert values_of(facts, "nemo_rl")["loss_fn.token_level_loss"] == nemo_rl


def test_what_one_engine_lacks_is_listed_for_it_alone(project: ToyProject) -> None:
    facts = facts_of(project, "rl.overlong=mask")
    assert "rl.overlong" in {one.recipe_key for one in lost_of(facts, "verl")}
    assert "rl.overlong" not in {one.recipe_key for one in lost_of(facts, "nemo_rl")}
    assert values_of(facts, "nemo_rl")["grpo.overlong_filtering"] is True
    facts = facts_of(project, "rl.aggregation=group-sum")
    assert "rl.aggregation" not in {one.recipe_key for one in lost_of(facts, "verl")}
    assert "rl.aggregation" in {one.recipe_key for one in lost_of(facts, "nemo_rl")}


def test_eight_gpus_are_a_node(project: ToyProject) -> None:
    loaded = load_recipe(project.root / "rl.yaml", site=project.root / "site.yaml")
    sizes = {}
    for ranks in (1, 4):
        plan = make_stage_plan(loaded, world_size=ranks)
        sizes[ranks] = StageFacts(plan, Path("/handed")).nodes
        wide = plan.model_copy(update={"layout": plan.layout.model_copy(update={"world_size": 16 * ranks})})
        sizes[16 * ranks] = StageFacts(wide, Path("/handed")).nodes
    assert sizes == {1: (1, 1), 4: (1, 4), 16: (2, 8), 64: (8, 8)}
