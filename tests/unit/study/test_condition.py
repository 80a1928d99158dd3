"""Arms are equal in what the study does not name: budgets, blends, repetition, and every key of their recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.plan.make import make_stage_plan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.study.make import make_study_plan
from megatron_ext.study.study_plan import ArmDifference
from tests.support.pencil_project import PencilProject, record, refused

CONFOUND = "  - {key: data.repeated, stage: pretrain, arms: [more*], why: b is small}\n"
PLAIN, MORE = ("plain", "plain-chat"), ("more", "more-chat")


def refusal() -> str:
    return refused(lambda: make_study_plan("study.yaml"))


def differences() -> dict[str, ArmDifference]:
    return {f"{one.stage} {one.key}": one for one in make_study_plan("study.yaml").differences}


def permit(study: PencilProject, text: str) -> None:
    study.edit("study.yaml", CONFOUND, f"{CONFOUND}  - {text}\n")


def test_each_difference_has_its_values_and_their_arms(study: PencilProject) -> None:
    found = differences()
    assert found.keys() == {"pretrain data.blend", "pretrain data.repeated"}
    assert [(group.value, group.arms) for group in found["pretrain data.blend"].values] == [
        ("75 % a + 25 % b", PLAIN),
        ("640 75 % a + 25 % b; 640 50 % a + 50 % b", MORE),
    ]
    assert [(group.value, group.arms) for group in found["pretrain data.repeated"].values] == [
        ("none", PLAIN),
        ("b 1.2 x", MORE),
    ]
    assert found["pretrain data.blend"].permitted_by == "varies"
    assert (found["pretrain data.repeated"].permitted_by, found["pretrain data.repeated"].why) == (
        "confounds",
        "b is small",
    )


def test_a_study_that_confounds_without_saying_so_is_refused_with_the_list(study: PencilProject) -> None:
    study.edit("study.yaml", f"confounds:\n{CONFOUND}", "")
    assert refusal() == (
        "study.yaml:6: varies: 1 difference between arms that the study does not name:\n"
        "  pretrain data.repeated\n"
        "    none     plain, plain-chat\n"
        "    b 1.2 x  more, more-chat\n"
        "  Make them equal, add the keys to varies, or say in confounds why they differ, such as\n"
        "    - {key: data.repeated, stage: pretrain, arms: [plain, plain-chat], why: …}"
    )


def test_a_chain_that_is_cut_elsewhere_is_no_difference(study: PencilProject) -> None:
    Path("whole.yaml").write_text("extends: base.yaml\nbudget: {tokens: 1_280}\n")
    study.edit("study.yaml", "plain: [base.yaml, plain.yaml]", "plain: [base.yaml, plain.yaml], whole: whole.yaml")
    assert [group.arms for group in differences()["pretrain data.blend"].values] == [
        ("plain", "plain-chat", "whole", "whole-chat"),
        MORE,
    ]


def test_phases_of_one_stage_are_compared_with_stages_of_a_chain(study: PencilProject) -> None:
    blends = ["[{source: a.yaml, share: 0.75}, {source: b.yaml, share: 0.25}]"]
    blends += ["[{source: a.yaml, share: 0.5}, {source: b.yaml, share: 0.5, max_epochs: 2}]"]
    phases = "".join(f"    - {{tokens: 640, blend: {blend}}}\n" for blend in blends)
    Path("more_phases.yaml").write_text(
        f"extends: base.yaml\nbudget: {{tokens: 1_280}}\ndata:\n  blend: null\n  phases:\n{phases}"
    )
    study.edit("study.yaml", "more: [base.yaml, more.yaml]", "more: [base.yaml, more.yaml], more_ph: more_phases.yaml")
    assert [group.arms for group in differences()["pretrain data.blend"].values] == [
        PLAIN,
        ("more", "more-chat", "more_ph", "more_ph-chat"),
    ]


def test_budgets_are_compared_in_tokens_and_in_flops(study: PencilProject) -> None:
    study.edit("more.yaml", "continue: base.yaml", "continue: base.yaml\nbudget: {tokens: 320}")
    message = refusal()
    assert "  pretrain budget.tokens\n    1.28K tokens  plain, plain-chat\n    960 tokens    more, more-chat" in message
    assert "  pretrain budget.flops\n" in message
    permit(study, "{key: budget, stage: pretrain, arms: [more*], why: half}")
    study.edit("study.yaml", CONFOUND, "")  # 160 + 160 tokens of b are no repetition any more
    assert [one.why for one in differences().values()] == ["half", "half", ""]


def test_a_model_is_compared_by_its_flops_too(study: PencilProject) -> None:
    Path("more-chat.yaml").write_text(
        "arm: wide\nstages: [base.yaml, more.yaml, chat.yaml]\n"
        "set: {pretrain: {model.ffn_hidden_size: 256}, sft: {model.ffn_hidden_size: 256}}\n"
    )
    study.edit("study.yaml", "matrix:", "arms: [more-chat.yaml]\nmatrix:")
    message = refusal()
    for line in ("pretrain budget.flops", "pretrain model.ffn_hidden_size", "sft model.ffn_hidden_size"):
        assert f"  {line}\n" in message
    assert "pretrain budget.tokens" not in message


def test_conversations_of_unequal_length_are_a_difference_in_tokens(study: PencilProject) -> None:
    Path("short.yaml").write_text("extends: chat.yaml\ndata: {blend: [{source: d.yaml, share: 1.0, max_epochs: 4}]}\n")
    study.edit("study.yaml", "chat: chat.yaml", "chat: chat.yaml, short: short.yaml")
    message = refusal()
    assert "  sft budget.tokens\n" in message
    assert "    none   plain-chat, more-chat\n    d 4 x  plain-short, more-short\n" in message  # 16 of 4 texts
    assert "sft budget.examples" not in message


def test_any_key_of_the_meaning_is_compared_and_none_of_the_placement(study: PencilProject) -> None:
    study.edit("more-chat.yaml", "arm: more-chat", "arm: other")
    study.edit("study.yaml", "matrix:", "arms: [more-chat.yaml]\nmatrix:")
    study.edit("study.yaml", "arms: [more*]", "arms: [more*, other]")
    for setting in ("training.micro_batch_size: 2", "checkpoint.keep_last: 5"):
        Path("more-chat.yaml").write_text(
            f"arm: other\nstages: [base.yaml, more.yaml, chat.yaml]\nset: {{pretrain: {{{setting}}}}}\n"
        )
        assert "pretrain data.blend" in differences()
    Path("more-chat.yaml").write_text(
        "arm: other\nstages: [base.yaml, more.yaml, chat.yaml]\nset: {sft: {optimizer.weight_decay: 0.5}}\n"
    )
    message = refusal()
    assert "  sft optimizer.weight_decay\n    0.5  other\n    0.1  plain-chat, more-chat" in message
    assert "- {key: optimizer.weight_decay, stage: sft, arms: [other], why: …}" in message


def test_arms_are_compared_as_far_as_each_goes(study: PencilProject) -> None:
    found = differences()
    assert not [key for key in found if key.startswith("sft")]  # plain and more have none, and need none


def test_an_arm_that_leaves_out_a_kind_in_the_middle_differs(study: PencilProject) -> None:
    Path("more-chat.yaml").write_text("arm: direct\nstages: [chat.yaml]\n")
    study.edit("study.yaml", "matrix:", "arms: [more-chat.yaml]\nmatrix:")
    message = refusal()
    assert "  pretrain stages\n    none   direct\n    there  plain, plain-chat, more, more-chat" in message


@pytest.mark.parametrize(
    ("confound", "said"),
    [
        ("{key: optimizer.lr, why: x}", "confounds[1]: optimizer.lr: nothing needs the permission for *; remove it"),
        ("{key: data.repeated, stage: sft, why: x}", "confounds[1]: data.repeated: nothing needs the permission for *"),
        (
            "{key: data.blend, arms: [more*], why: x}",
            "confounds[1]: data.blend: nothing needs the permission for more*",
        ),
        ("{key: optimizer.lrr, why: x}", "optimizer.lrr: no key that arms are compared in; did you mean optimizer.lr?"),
        ("{key: training.backend, why: x}", "training.backend: says where and how a stage runs"),
    ],
)
def test_a_permission_that_nothing_needs_is_refused(study: PencilProject, confound: str, said: str) -> None:
    permit(study, confound)
    assert said in refusal()


def test_an_arm_that_needs_no_permission_is_named(study: PencilProject) -> None:
    study.edit("study.yaml", "arms: [more*]", "arms: [more*, plain-chat]")
    assert "confounds[0]: data.repeated: nothing needs the permission for plain-chat; remove it" in refusal()


def test_a_key_that_nothing_varies_is_refused(study: PencilProject) -> None:
    study.edit("study.yaml", "varies: [data.blend]", "varies: [data.blend, optimizer]")
    assert "study.yaml:6: varies[1]: optimizer: no arms differ in it; remove it" in refusal()


def test_a_section_in_varies_covers_the_keys_below_it(study: PencilProject) -> None:
    study.edit("study.yaml", "varies: [data.blend]", "varies: [data]")
    study.edit("study.yaml", f"confounds:\n{CONFOUND}", "")
    assert {one.permitted_by for one in differences().values()} == {"varies"}


def test_arms_that_begin_from_other_finished_stages_differ_in_that(study: PencilProject) -> None:
    for number, seed in enumerate((1, 2)):
        giver = record(make_stage_plan(load_recipe("base.yaml", overrides=(f"seed={seed}",))), Path("runs"))
        Path(f"from_{number}.yaml").write_text(f"extends: chat.yaml\ninit_from: {giver.stage_id}\n")
    Path("study.yaml").write_text(
        "study: two\nvaries: [init_from]\nmatrix:\n  - axes: {sft: {one: from_0.yaml, other: from_1.yaml}}\n"
    )
    assert [(one.stage, one.key, len(one.values)) for one in make_study_plan("study.yaml").differences] == [
        ("sft", "init_from", 2)
    ]


def test_a_permission_for_one_kind_of_stage_does_not_serve_another(study: PencilProject) -> None:
    study.edit("study.yaml", "stage: pretrain", "stage: sft")
    assert "  pretrain data.repeated\n" in refusal()
