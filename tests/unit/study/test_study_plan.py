"""The graph of a study: every stage once, arms that share it, seeds, and the options with which a node runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import DataError, UsageError
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.sft_rows import _made
from megatron_ext.recipe.load import load_recipe
from megatron_ext.study.make import make_arm_plan, make_study_plan
from megatron_ext.study.study_plan import Hardware, StageNode, StudyPlan, read_study_plan
from tests.support.pencil_project import PencilProject, record, refused


def named(plan: StudyPlan, recipe: str, replicate: int = 0) -> list[StageNode]:
    return [stage for stage in plan.stages if stage.recipe == recipe and stage.replicate == replicate]


def refusal() -> str:
    return refused(lambda: make_study_plan("study.yaml"))


def test_arms_share_the_stages_that_are_equal(study: PencilProject) -> None:
    plan = make_study_plan("study.yaml")
    assert (plan.totals.arms, plan.totals.chain_stages, plan.totals.unique_stages) == (4, 10, 5)
    (base,), (plain,), (more,) = (named(plan, recipe) for recipe in ("base.yaml", "plain.yaml", "more.yaml"))
    assert base.arms == ("plain", "plain-chat", "more", "more-chat")
    assert (plain.arms, more.arms) == (("plain", "plain-chat"), ("more", "more-chat"))
    assert {stage.parent: stage.arms for stage in named(plan, "chat.yaml")} == {
        plain.stage_id: ("plain-chat",),
        more.stage_id: ("more-chat",),
    }


def test_stages_stand_behind_those_that_they_begin_from(study: PencilProject) -> None:
    plan = make_study_plan("study.yaml")
    order = [stage.stage_id for stage in plan.stages]
    for stage in plan.stages:
        assert stage.parent is None or order.index(stage.parent) < order.index(stage.stage_id)
    assert [stage.recipe for stage in plan.roots()] == ["base.yaml"]
    assert [stage.recipe for stage in plan.children(plan.roots()[0].stage_id)] == ["plain.yaml", "more.yaml"]


def test_tokens_are_summed_once_for_the_graph_and_for_each_arm_alone(study: PencilProject) -> None:
    plan = make_study_plan("study.yaml")
    (chat,) = {stage.tokens for stage in named(plan, "chat.yaml")}
    assert plan.totals.cost.tokens == 3 * 640 + 2 * chat
    assert {arm.id: arm.cost.tokens for arm in plan.arms} == {
        "plain": 1_280,
        "plain-chat": 1_280 + chat,
        "more": 1_280,
        "more-chat": 1_280 + chat,
    }
    assert plan.totals.unshared.tokens == 4 * 1_280 + 2 * chat


def test_a_node_run_by_its_options_is_the_stage_that_was_planned(study: PencilProject) -> None:
    plan = make_study_plan("study.yaml", seeds=2)
    for stage in plan.stages:
        alone = make_stage_plan(load_recipe(stage.recipe, overrides=stage.overrides))
        assert alone.stage_id == stage.stage_id
        record(alone, Path("runs"))  # a child names it by its id
    assert {stage.takes for stage in plan.stages if stage.recipe == "chat.yaml"} == {"weights"}
    assert {stage.takes for stage in plan.stages if stage.recipe == "more.yaml"} == {"everything"}


def test_replicate_0_is_the_recipe_and_the_others_have_the_next_seeds(study: PencilProject) -> None:
    plan, one = make_study_plan("study.yaml", seeds=2), make_study_plan("study.yaml")
    assert {stage.stage_id for stage in one.stages} == {stage.stage_id for stage in plan.stages if not stage.replicate}
    assert {(stage.replicate, stage.seed) for stage in plan.stages} == {(0, 1234), (1, 1235)}
    assert (plan.totals.chain_stages, plan.totals.unique_stages) == (20, 10)
    assert [len(arm.chains) for arm in plan.arms] == [2, 2, 2, 2]


def test_replicates_of_a_stage_begin_in_turn_from_those_of_the_stage_before(study: PencilProject) -> None:
    study.edit("study.yaml", "baseline:", "seeds: {pretrain: 2, sft: 4}\nbaseline:")
    plan = make_study_plan("study.yaml")
    chains = plan.arm("more-chat").chains
    assert [[plan.stage(one).replicate for one in chain] for chain in chains] == [
        [0, 0, 0],
        [1, 1, 1],
        [0, 0, 2],
        [1, 1, 3],
    ]
    assert (plan.totals.chain_stages, plan.totals.unique_stages) == (2 * 4 + 2 * 8, 2 + 4 + 8)


@pytest.mark.parametrize(("sft", "fitting"), [(3, "2, 4"), (1, "2"), (5, "4, 6")])
def test_replicates_that_parents_cannot_share_out_equally_are_refused(
    study: PencilProject, sft: int, fitting: str
) -> None:
    study.edit("study.yaml", "baseline:", f"seeds: {{pretrain: 2, sft: {sft}}}\nbaseline:")
    assert refusal() == (
        f"study.yaml:9: seeds.sft: {sft} and seeds.pretrain 2: as many replicates must begin from each of the stage "
        f"before; write a multiple of 2, such as {fitting}"
    )


def test_seeds_of_a_kind_that_no_arm_has_count_for_nothing(study: PencilProject) -> None:
    study.edit("study.yaml", "baseline:", "seeds: {pretrain: 3, sft: 3}\nbaseline:")  # of rl 1, the default
    assert make_study_plan("study.yaml").totals.unique_stages == 15


def test_fewer_arms_are_planned_and_all_are_compared(study: PencilProject) -> None:
    plan = make_study_plan("study.yaml", arms=("more*",))
    assert [arm.id for arm in plan.arms] == ["more", "more-chat"]
    assert (plan.totals.unique_stages, plan.baseline) == (3, None)
    assert named(plan, "base.yaml")[0].arms == ("more", "more-chat")
    study.edit("study.yaml", "why: b is small}", "why: b is small}\n  - {key: seed, why: none differs}")
    assert "confounds[1]: seed: nothing needs the permission" in refused(
        lambda: make_study_plan("study.yaml", arms=("more*",))
    )


def test_differences_are_those_between_the_arms_of_the_plan(study: PencilProject) -> None:
    assert make_study_plan("study.yaml", arms=("more*",)).differences == ()
    found = make_study_plan("study.yaml", arms=("plain", "more-chat")).differences
    assert [(one.key, [group.arms for group in one.values]) for one in found] == [
        ("data.blend", [("plain",), ("more-chat",)]),
        ("data.repeated", [("plain",), ("more-chat",)]),
    ]


@pytest.mark.parametrize("varies", ["", "varies: [data.blend]\n"])
def test_a_study_of_one_arm_is_planned(study: PencilProject, varies: str) -> None:
    Path("study.yaml").write_text(f"study: one\narms: [more-chat.yaml]\n{varies}")
    plan = make_study_plan("study.yaml", seeds=3)
    assert (len(plan.arms), plan.totals.unique_stages, plan.differences) == (1, 9, ())


def test_two_arms_of_the_same_stages_are_refused(study: PencilProject) -> None:
    study.edit("more-chat.yaml", "arm: more-chat", "arm: copy")
    study.edit("study.yaml", "matrix:", "arms: [more-chat.yaml]\nmatrix:")
    assert refusal() == (
        "study.yaml:4: more-chat: has the same stages as arm copy: base.yaml, more.yaml, chat.yaml; mend one of them, "
        "or remove it"
    )


def test_a_stage_that_two_arms_place_differently_is_refused(study: PencilProject) -> None:
    Path("more-chat.yaml").write_text(
        "arm: direct\nstages: [base.yaml, chat.yaml]\nset: {pretrain: {training.micro_batch_size: 2}}\n"
    )
    study.edit("study.yaml", "matrix:", "arms: [more-chat.yaml]\nmatrix:")
    message = refusal()
    assert "arm direct: base.yaml: is pretrain-" in message or "arm plain: base.yaml: is pretrain-" in message
    assert "which runs once: training.micro_batch_size " in message
    assert "such as in `set` of the study" in message


def test_an_arm_that_the_study_does_not_have_is_refused(study: PencilProject) -> None:
    message = refused(lambda: make_study_plan("study.yaml", arms=("mor",)), UsageError)
    assert message.startswith(
        "--arms mor: no such arm; did you mean more? there are: plain, plain-chat, more, more-chat"
    )


def test_a_recipe_that_names_another_parent_than_the_arm_is_refused(study: PencilProject) -> None:
    study.edit("more.yaml", "continue: base.yaml", "continue: plain.yaml")
    assert "arm more: more.yaml: continue: plain.yaml, and in this arm base.yaml stands before it" in refusal()


def test_an_arm_that_leaves_out_the_parent_of_its_first_stage_is_refused(study: PencilProject) -> None:
    study.edit("study.yaml", "[base.yaml, more.yaml]", "[more.yaml]")
    assert "more.yaml: continue: base.yaml, and in this arm nothing stands before it; write base.yaml" in refusal()


def test_an_arm_may_begin_from_a_finished_stage_of_the_run_root(study: PencilProject) -> None:
    finished = record(make_stage_plan(load_recipe("base.yaml")), Path("runs"))
    study.edit("chat.yaml", "init_from: unresolved", f"init_from: {finished.stage_id}")
    Path("more-chat.yaml").write_text("arm: direct\nstages: [chat.yaml]\n")
    (plan,) = make_arm_plan("more-chat.yaml").stages
    assert plan.init_from is not None
    assert (plan.recipe, plan.init_from.stage_id) == ("chat.yaml", finished.stage_id)


def test_every_arm_that_cannot_be_carried_out_is_named(study: PencilProject) -> None:
    study.edit("plain.yaml", "continue: base.yaml", "continue: base.yaml\nseed: 5")
    study.edit("more.yaml", "continue: base.yaml", "continue: base.yaml\nprecision: bf16")
    message = refusal()
    assert "plain.yaml:3: seed: 5, and 1,234 in the stage that this one continues" in message
    assert "more.yaml:3: precision: 'bf16', and 'fp32'" in message


def test_declared_sizes_make_a_plan_that_can_be_read_and_not_run(study: PencilProject) -> None:
    Path("data/b.manifest.json").unlink()
    study.edit("b.yaml", "domain: math", "domain: math\ndeclared_tokens: 400")
    plan = make_study_plan("study.yaml")
    assert plan.is_provisional
    assert all(stage.is_provisional for stage in plan.stages)
    message = refused(lambda: make_study_plan("study.yaml", may_be_provisional=False), DataError)
    assert "b.manifest.json: not built yet" in message


def test_each_stage_that_ends_its_kind_in_an_arm_is_judged_by_the_suites_of_its_kind(study: PencilProject) -> None:
    study.edit("study.yaml", "evaluate: {sft", "evaluate: {pretrain: [suite.yaml], sft")
    plan = make_study_plan("study.yaml")
    judged = [plan.stage(one.stage_id).recipe for one in plan.evaluations]
    assert judged == ["plain.yaml", "chat.yaml", "more.yaml", "chat.yaml"]
    one = plan.evaluations[0]
    assert one.node_id == f"{one.stage_id}/{one.folder}"
    assert one.folder.startswith("pencils-")
    assert len({other.folder for other in plan.evaluations}) == 1


def test_an_edited_suite_is_another_evaluation(study: PencilProject) -> None:
    before = make_study_plan("study.yaml").evaluations[0].folder
    Path("suite.yaml").write_text(Path("suite.yaml").read_text() + "# a remark\n")
    assert make_study_plan("study.yaml").evaluations[0].folder != before


def test_hardware_adds_hours_to_stages_arms_and_totals(study: PencilProject) -> None:
    plan = make_study_plan("study.yaml", hardware=Hardware(gpu="100", mfu=0.5))
    for stage in plan.stages:
        assert stage.gpu_seconds == pytest.approx(stage.flops / 50e12)
    assert plan.totals.cost.gpu_seconds == pytest.approx(plan.totals.cost.flops / 50e12)
    assert make_study_plan("study.yaml").totals.cost.gpu_seconds is None


def test_a_plan_reads_back_from_its_json(study: PencilProject) -> None:
    plan = make_study_plan("study.yaml", seeds=2, hardware=Hardware(gpu="h100", mfu=0.4))
    Path("study.json").write_text(plan.to_json())
    assert read_study_plan(Path("study.json")) == plan
    Path("study.json").write_text("{}")
    with pytest.raises(DataError, match=r"study\.json: damaged, or of another version; plan the study again"):
        read_study_plan(Path("study.json"))


def test_an_arm_alone_is_a_study_of_one_chain(study: PencilProject) -> None:
    arm = make_arm_plan("more-chat.yaml", overrides=("training.validation_tokens=32",), world_size=2)
    whole = make_study_plan("study.yaml")
    assert tuple(plan.stage_id for plan in arm.stages) == whole.arm("more-chat").chains[0]
    assert {plan.layout.world_size for plan in arm.stages} == {2}
    assert [plan.cadence.validation_samples for plan in arm.stages] == [2, 2, 2]  # of 16 tokens; the recipes say 48


def test_what_is_set_over_a_kind_changes_its_stages_alone(study: PencilProject) -> None:
    before = make_study_plan("study.yaml")
    study.edit("study.yaml", "baseline:", "set: {sft: {optimizer.lr: 1e-2}}\nbaseline:")
    after = make_study_plan("study.yaml")
    kept = {stage.stage_id for stage in before.stages} & {stage.stage_id for stage in after.stages}
    assert {before.stage(one).stage for one in kept} == {"pretrain"}
    assert named(after, "chat.yaml")[0].overrides[0] == "optimizer.lr=0.01"


def test_conversations_are_packed_once_whichever_bases_are_tuned_on_them(study: PencilProject) -> None:
    for number in range(3):
        share = 0.5 + number / 8
        Path(f"chat_{number}.yaml").write_text(
            "extends: chat.yaml\ndata:\n  blend:\n"
            f"    - {{source: c.yaml, share: {share}, max_epochs: 2}}\n"
            f"    - {{source: d.yaml, share: {1 - share}, max_epochs: 4}}\n"
        )
    study.edit("study.yaml", "chat: chat.yaml", ", ".join(f"chat_{number}: chat_{number}.yaml" for number in range(3)))
    study.edit("study.yaml", "varies: [data.blend]", "varies: [data.blend, data.repeated, budget]")
    study.edit(
        "study.yaml", "confounds:\n  - {key: data.repeated, stage: pretrain, arms: [more*], why: b is small}\n", ""
    )
    study.edit("study.yaml", "baseline: plain-chat\n", "")
    _made.cache_clear()
    plan = make_study_plan("study.yaml")
    assert [arm.id for arm in plan.arms][:3] == ["plain", "plain-chat_0", "plain-chat_1"]
    assert sum(stage.stage == "sft" for stage in plan.stages) == 6
    assert _made.cache_info().misses == 3
