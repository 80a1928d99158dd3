"""Study and arm files: strict, all errors at once, each with its place and the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import RecipeError
from megatron_ext.plan.validate import validate_file
from megatron_ext.recipe.load import load_file, load_recipe
from megatron_ext.recipe.study_load import LoadedArm, LoadedStudy, is_arm_file, load_arm, load_study
from tests.support.pencil_project import PencilProject, refused


def refusal(name: str = "study.yaml") -> str:
    return refused(lambda: load_study(name))


def test_a_matrix_makes_one_arm_for_each_combination_the_last_axis_fastest(study: PencilProject) -> None:
    assert {arm.id: arm.recipes for arm in load_study("study.yaml").arms} == {
        "plain": ("base.yaml", "plain.yaml"),
        "plain-chat": ("base.yaml", "plain.yaml", "chat.yaml"),
        "more": ("base.yaml", "more.yaml"),
        "more-chat": ("base.yaml", "more.yaml", "chat.yaml"),
    }
    assert [arm.id for arm in load_study("study.yaml").arms] == ["plain", "plain-chat", "more", "more-chat"]


def test_a_value_of_null_adds_no_stage_and_no_name(study: PencilProject) -> None:
    study.edit("study.yaml", "sft: {none: null, chat: chat.yaml}", "sft: {none: null}")
    study.edit("study.yaml", "baseline: plain-chat\n", "")
    assert [arm.id for arm in load_study("study.yaml").arms] == ["plain", "more"]


def test_arm_files_and_a_matrix_may_stand_together(study: PencilProject) -> None:
    study.edit("more-chat.yaml", "arm: more-chat", "arm: of-a-file")
    study.edit("study.yaml", "matrix:", "arms: [more-chat.yaml]\nmatrix:")
    assert [arm.id for arm in load_study("study.yaml").arms][:2] == ["of-a-file", "plain"]


def test_paths_are_relative_to_the_file_that_writes_them(study: PencilProject) -> None:
    Path("below").mkdir()
    Path("below/arm.yaml").write_text("arm: one\nstages: [../base.yaml]\nset: {pretrain: {model: ../model.yaml}}\n")
    arm = load_arm("below/arm.yaml")
    assert arm.recipes == ("base.yaml",)
    assert arm.overrides["pretrain"] == ("model=model.yaml",)


def test_what_a_study_sets_comes_before_what_an_arm_sets(study: PencilProject) -> None:
    study.edit("more-chat.yaml", "stages:", "set: {sft: {optimizer.lr: 1e-5}}\nstages:")
    Path("study.yaml").write_text(
        "study: one\narms: [more-chat.yaml]\nvaries: [data]\nset: {sft: {optimizer.lr: 2e-5, training.backend: local}}"
    )
    (arm,) = load_study("study.yaml").arms
    assert arm.overrides["sft"] == ("optimizer.lr=2e-05", "training.backend=local", "optimizer.lr=1e-05")


def test_a_text_that_looks_like_a_number_stays_text(study: PencilProject) -> None:
    study.edit("more-chat.yaml", "stages:", "set: {rl: {model.name: '12'}}\nstages:")
    assert load_arm("more-chat.yaml").overrides["rl"] == ('model.name="12"',)


def test_all_errors_come_at_once_with_their_lines(study: PencilProject) -> None:
    study.edit("study.yaml", "study: pencil", "study: a pencil")
    study.edit("study.yaml", "varies:", "varied:")
    study.edit("study.yaml", "baseline:", "base:")
    message = refusal()
    assert message.splitlines()[0] == "4 problems"
    assert "study.yaml:1: study: 'a pencil' is not allowed" in message
    assert "study.yaml:6: varied: unknown key; did you mean varies?" in message
    assert "study.yaml:9: base: unknown key" in message
    assert "study.yaml:1: varies: required and not set" in message


def test_missing_files_are_named_with_the_nearest_one(study: PencilProject) -> None:
    study.edit("study.yaml", "[base.yaml, more.yaml]", "[base.yaml, mroe.yaml]")
    study.edit("study.yaml", "[suite.yaml]", "[suits.yaml]")
    message = refusal()
    assert "study.yaml:4: matrix[0].axes.base.more[1]: mroe.yaml: no such file; did you mean more.yaml?" in message
    assert "study.yaml:10: evaluate.sft[0]: suits.yaml: no such file; did you mean suite.yaml?" in message


def test_two_arms_of_one_id_are_refused_with_both_places(study: PencilProject) -> None:
    study.edit("study.yaml", "matrix:", "arms: [more-chat.yaml]\nmatrix:")
    assert "study.yaml:4: more-chat: is the id of the arm of more-chat.yaml:1 too" in refusal()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("baseline: plain-chat", "baseline: plain-cat", "baseline: plain-cat: no such arm; did you mean plain-chat?"),
        ("arms: [more*]", "arms: [lots*]", "confounds[0].arms: lots*: no such arm"),
        ("baseline:", "seeds: {pretrain: 3, sft: 2}\nbaseline:", "seeds.sft: 2 and seeds.pretrain 3"),
        (
            "baseline:",
            "set: {sft: {init_from: base.yaml}}\nbaseline:",
            "set.sft.init_from: base.yaml: the stage before",
        ),
    ],
)
def test_names_and_numbers_that_do_not_fit_are_refused(study: PencilProject, old: str, new: str, said: str) -> None:
    study.edit("study.yaml", old, new)
    assert said in refusal()


def test_a_finding_of_an_unknown_arm_is_refused(study: PencilProject) -> None:
    comparison = "{better: [more-chat], than: [plane-chat], stage: sft, metric: c}"
    finding = f"findings:\n  - {{name: one, says: So., comparisons: [{comparison}]}}\nbaseline:"
    study.edit("study.yaml", "baseline:", finding)
    assert "findings[0].comparisons[0].than: plane-chat: no such arm; did you mean plain-chat?" in refusal()


@pytest.mark.parametrize(("keys", "is_valid"), [("expect: equal", False), ("within: 1", False), ("", True)])
def test_equality_is_expected_with_a_width_and_nothing_else_is(study: PencilProject, keys: str, is_valid: bool) -> None:
    comparison = f"{{better: [more-chat], than: [plain-chat], stage: sft, metric: c, {keys}}}"
    finding = f"findings:\n  - {{name: one, says: So., comparisons: [{comparison}]}}\nbaseline:"
    study.edit("study.yaml", "baseline:", finding)
    if is_valid:
        assert load_study("study.yaml").recipe.findings[0].arms == {"more-chat", "plain-chat"}
    else:
        assert "expect equal needs within, higher none" in refusal()


def test_load_file_and_validate_know_both_kinds(study: PencilProject) -> None:
    assert isinstance(load_file("study.yaml"), LoadedStudy)
    assert isinstance(load_file("more-chat.yaml"), LoadedArm)
    assert validate_file(Path("study.yaml")) == "study.yaml: ok: study pencil, 4 arms"
    assert validate_file(Path("more-chat.yaml")) == "more-chat.yaml: ok: arm more-chat, 3 stages"
    assert (is_arm_file("more-chat.yaml"), is_arm_file("study.yaml"), is_arm_file("base.yaml")) == (True, False, False)


@pytest.mark.parametrize(("file", "kind"), [("study.yaml", "a study"), ("more-chat.yaml", "an arm")])
def test_neither_is_a_stage_recipe(study: PencilProject, file: str, kind: str) -> None:
    with pytest.raises(RecipeError, match=f"{file}: this is {kind} file; name a stage recipe"):
        load_recipe(file)


def test_a_study_may_extend_another(study: PencilProject) -> None:
    Path("two.yaml").write_text("extends: study.yaml\nstudy: two\nbaseline: more\n")
    two = load_study("two.yaml").recipe
    assert (two.study, two.baseline, len(two.confounds)) == ("two", "more", 1)
