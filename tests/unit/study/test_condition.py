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
    study.edit("study.yaml", "sft: {none: null, chat: chat.yaml}", "sft: {chat: chat.yaml}")
    study.edit("study.yaml", "more: [base.yaml, more.yaml]", "")
    study.edit("study.yaml", "matrix:", "arms: [more-chat.yaml]\nmatrix:")
    study.edit("study.yaml", "arms: [more*]", "arms: [other]")
    other = "arm: other\nstages: [base.yaml, more.yaml, chat.yaml]\nset: {{sft: {{{}}}}}\n"
    for setting in ("training.backend: local", "checkpoint.keep_last: 5"):
        Path("more-chat.yaml").write_text(other.format(setting))
        assert differences().keys() == {"pretrain data.blend", "pretrain data.repeated"}
    Path("more-chat.yaml").write_text(other.format("optimizer.weight_decay: 0.5"))
    message = refusal()
    assert "  sft optimizer.weight_decay\n    0.5  other\n    0.1  plain-chat" in message
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


WEIGHTS = "extends: base.yaml\ninit_from: unresolved\n"


def permit_repetition(study: PencilProject) -> None:
    """A stage that takes weights alone begins its sources anew."""
    for file, sources in (("base.yaml", "ab"), ("chat.yaml", "cd")):
        for name, share in zip(sources, (0.75, 0.25), strict=True):
            study.edit(
                file,
                f"{{source: {name}.yaml, share: {share}}}",
                f"{{source: {name}.yaml, share: {share}, max_epochs: 9}}",
            )


def test_a_stage_that_takes_weights_alone_differs_from_one_that_goes_on(study: PencilProject) -> None:
    permit_repetition(study)
    Path("anew.yaml").write_text(WEIGHTS)
    study.edit(
        "study.yaml", "plain: [base.yaml, plain.yaml]", "plain: [base.yaml, plain.yaml], anew: [base.yaml, anew.yaml]"
    )
    assert (
        "  pretrain joined\n"
        "    continue, or one stage  plain, plain-chat, more, more-chat\n"
        "    init_from: 640 + 640    anew, anew-chat\n"
    ) in refusal()
    permit(study, "{key: joined, stage: pretrain, arms: [anew*], why: asked}")
    assert differences()["pretrain joined"].why == "asked"


def test_arms_that_begin_anew_at_the_same_place_are_equal_and_at_another_not(study: PencilProject) -> None:
    permit_repetition(study)
    Path("anew.yaml").write_text(WEIGHTS)
    Path("later.yaml").write_text(WEIGHTS + "budget: {tokens: 320}\n")
    Path("short.yaml").write_text("extends: base.yaml\nbudget: {tokens: 960}\n")
    base = "plain: [base.yaml, anew.yaml], more: [base.yaml, plain_w.yaml]"
    Path("plain_w.yaml").write_text(WEIGHTS + "seed: 7\n")
    study.edit("study.yaml", "plain: [base.yaml, plain.yaml], more: [base.yaml, more.yaml]", base)
    study.edit("study.yaml", f"varies: [data.blend]\nconfounds:\n{CONFOUND}", "varies: [seed]\n")
    assert differences().keys() == {"pretrain seed"}
    study.edit("study.yaml", "more: [base.yaml, plain_w.yaml]", "more: [short.yaml, later.yaml]")
    assert "  pretrain joined\n    init_from: 640 + 640  plain, plain-chat\n    init_from: 960 + 320  " in refusal()


def test_a_key_that_changes_on_the_way_counts_with_what_each_value_holds_for(study: PencilProject) -> None:
    permit_repetition(study)
    settings = {"early": (4, "3e-3"), "late": (12, "1e-3"), "early_long": (12, "3e-3"), "late_short": (4, "1e-3")}
    for name, (examples, rate) in settings.items():
        Path(f"{name}.yaml").write_text(
            f"extends: chat.yaml\nbudget: {{examples: {examples}}}\noptimizer: {{lr: {rate}}}\n"
        )
    study.edit("study.yaml", "chat: chat.yaml", "a: [early.yaml, late.yaml], b: [early_long.yaml, late_short.yaml]")
    study.edit("study.yaml", "baseline: plain-chat\n", "")
    message = refusal()
    assert (
        "  sft optimizer.lr\n"
        "    0.003 for 4, then 0.001 for 12  plain-a, more-a\n"
        "    0.003 for 12, then 0.001 for 4  plain-b, more-b\n"
    ) in message
    assert "  sft joined\n    init_from: 4 + 12  plain-a, more-a\n    init_from: 12 + 4  plain-b, more-b\n" in message


def test_blends_of_fine_tuning_count_with_their_conversations(study: PencilProject) -> None:
    for name, source, examples in (("c4", "c", 4), ("d12", "d", 12), ("c12", "c", 12), ("d4", "d", 4)):
        Path(f"{name}.yaml").write_text(
            f"extends: chat.yaml\nbudget: {{examples: {examples}}}\n"
            f"data: {{blend: [{{source: {source}.yaml, share: 1.0, max_epochs: 16}}]}}\n"
        )
    study.edit("study.yaml", "chat: chat.yaml", "a: [c4.yaml, d12.yaml], b: [c12.yaml, d4.yaml]")
    study.edit("study.yaml", "baseline: plain-chat\n", "")
    study.edit("study.yaml", "varies: [data.blend]", "varies: [joined, budget, data.repeated]")
    study.edit("study.yaml", f"confounds:\n{CONFOUND}", "")
    assert "  sft data.blend\n    4 100 % c; 12 100 % d  plain-a, more-a\n    12 100 % c; 4 100 % d  " in refusal()


def test_arms_that_go_on_with_other_finished_stages_differ_in_that(study: PencilProject) -> None:
    for number, seed in enumerate((1, 2)):
        before = record(make_stage_plan(load_recipe("base.yaml", overrides=(f"seed={seed}",))), Path("runs"))
        Path(f"on_{number}.yaml").write_text(f"extends: base.yaml\ncontinue: {before.stage_id}\nseed: {seed}\n")
    Path("study.yaml").write_text(
        "study: two\nvaries: [seed]\nmatrix:\n  - axes: {base: {one: on_0.yaml, other: on_1.yaml}}\n"
    )
    assert "  pretrain continue\n" in refusal()


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
