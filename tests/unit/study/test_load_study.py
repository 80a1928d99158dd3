"""Study and arm files: strict, all errors at once, each with its place and the nearest name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.errors import RecipeError
from megatron_ext.recipe.compose import compose
from megatron_ext.recipe.load import load_file, load_recipe
from megatron_ext.recipe.study_load import LoadedArm, LoadedStudy, is_arm_file, load_arm, load_study
from megatron_ext.study.make import make_arm_plan, make_study_plan
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


@pytest.mark.parametrize("value", ["[a, b]", "{a: b}", '"12"', 'a "b" c', "on", "1e-4", " a ", "null", "a: b"])
def test_a_text_that_is_set_is_read_back_as_it_was_written(study: PencilProject, value: str) -> None:
    study.edit("more-chat.yaml", "stages:", f"set: {{rl: {{model.name: {json.dumps(value)}}}}}\nstages:")
    overrides = load_arm("more-chat.yaml").overrides["rl"]
    assert compose("base.yaml", overrides=overrides).data["model"]["name"] == value


def test_what_is_set_over_a_recipe_is_blamed_where_it_is_written(study: PencilProject) -> None:
    study.edit("more-chat.yaml", "stages:", "set:\n  sft: {optimizer.lrr: 1}\nstages:")
    Path("study.yaml").write_text("study: one\narms: [more-chat.yaml]\nset:\n  pretrain:\n    optimizer.lr: abc\n")
    message = refused(lambda: make_study_plan("study.yaml"))
    assert message.startswith("study.yaml:5: optimizer.lr: 'abc' is not a number")
    study.edit("study.yaml", "optimizer.lr: abc", "optimizer.lr: 1e-9")  # below min_lr, which the recipe has
    assert refused(lambda: make_study_plan("study.yaml")).startswith("study.yaml:5: optimizer.min_lr: ")
    study.edit("study.yaml", "optimizer.lr: 1e-9", "optimizer.weight_decay: 0.1")
    assert refused(lambda: make_study_plan("study.yaml")).startswith(
        "more-chat.yaml:3: optimizer.lrr: unknown key; did you mean lr?"
    )


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("base.yaml", "base.yaml: this is a stage recipe, and not {}; "),
        ("suite.yaml", "suite.yaml: this is a suite, and not {}; "),
        ("model.yaml", "model.yaml: this is a model, and not {}; "),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_sentence(study: PencilProject, file: str, said: str) -> None:
    assert refusal(file).startswith(said.format("a study") + "name a study, ")
    assert refused(lambda: load_arm(file)).startswith(said.format("an arm") + "name an arm, ")
    study.edit("study.yaml", "matrix:", f"arms: [{file}]\nmatrix:")
    assert refusal() == said.format("an arm") + ("name an arm, a file with arm: NAME and its stages: [RECIPE, ...]")


@pytest.mark.parametrize("name", ["../x y", "c:d", "a#1", "a,b"])
def test_a_value_that_gives_no_plain_id_is_refused(study: PencilProject, name: str) -> None:
    study.edit("study.yaml", "{plain: [", f"{{{json.dumps(name)}: [")
    study.edit("study.yaml", "baseline: plain-chat\n", "")
    assert refusal() == (
        f"study.yaml:4: matrix[0].axes.base.{name}: {name!r} is not allowed; it becomes a part of arms' ids: letters, "
        "digits, '_' and '-'"
    )


def test_all_errors_come_at_once_with_their_lines(study: PencilProject) -> None:
    study.edit("study.yaml", "study: pencil", "study: a pencil")
    study.edit("study.yaml", "varies:", "varied:")
    study.edit("study.yaml", "evaluate: {", "evaluate: {later: [], ")
    study.edit("study.yaml", "baseline:", "base:")
    message = refusal()
    assert message.splitlines()[0] == "4 problems"
    assert "study.yaml:1: study: 'a pencil' is not allowed" in message
    assert "study.yaml:6: varied: unknown key; did you mean varies?" in message
    assert "study.yaml:9: base: unknown key" in message
    assert "study.yaml:10: evaluate.later: unknown key" in message


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


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("expect: equal", "expect is equal, and nothing says how near that is; add within, in points"),
        ("within: 1.5", "within is 1.5, and expect is higher; within goes with expect: equal"),
        ("", ""),
    ],
)
def test_equality_is_expected_with_a_width_and_nothing_else_is(study: PencilProject, keys: str, said: str) -> None:
    comparison = f"{{better: [more-chat], than: [plain-chat], stage: sft, metric: c, {keys}}}"
    finding = f"findings:\n  - {{name: one, says: So., comparisons: [{comparison}]}}\nbaseline:"
    study.edit("study.yaml", "baseline:", finding)
    if not said:
        assert load_study("study.yaml").recipe.findings[0].arms == {"more-chat", "plain-chat"}
    else:
        assert refusal().endswith(f"comparisons[0]: {said}")


def test_load_file_knows_both_kinds(study: PencilProject) -> None:
    assert isinstance(load_file("study.yaml"), LoadedStudy)
    assert isinstance(load_file("more-chat.yaml"), LoadedArm)
    assert (is_arm_file("more-chat.yaml"), is_arm_file("study.yaml"), is_arm_file("base.yaml")) == (True, False, False)


@pytest.mark.parametrize(("file", "kind"), [("study.yaml", "a study"), ("more-chat.yaml", "an arm")])
def test_neither_is_a_stage_recipe(study: PencilProject, file: str, kind: str) -> None:
    with pytest.raises(RecipeError, match=f"{file}: this is {kind} file; name a stage recipe"):
        load_recipe(file)


def test_a_study_may_extend_another(study: PencilProject) -> None:
    Path("two.yaml").write_text("extends: study.yaml\nstudy: two\nbaseline: more\n")
    two = load_study("two.yaml").recipe
    assert (two.study, two.baseline, len(two.confounds)) == ("two", "more", 1)


def test_a_recipe_where_a_suite_belongs_is_refused_in_one_sentence(study: PencilProject) -> None:
    study.edit("study.yaml", "[suite.yaml]", "[base.yaml]")
    assert refusal() == (
        "study.yaml:10: evaluate.sft[0]: base.yaml: this is a stage recipe, and not a suite; name a suite, a file with "
        "suite: NAME and its tasks"
    )


def test_an_arm_that_is_listed_twice_is_said_to_be_so(study: PencilProject) -> None:
    Path("twice.yaml").write_text("study: twice\narms: [more-chat.yaml, more-chat.yaml]\n")
    assert refusal("twice.yaml").endswith(": is listed twice; remove one")


def test_what_is_set_over_stages_that_no_arm_has_is_refused(study: PencilProject) -> None:
    study.edit("study.yaml", "evaluate:", "set:\n  sft: {training.backend: local}\n  rl: {optimizer.lr: 1}\nevaluate:")
    assert refused(lambda: make_study_plan("study.yaml")) == (
        "study.yaml:12: set.rl: no arm that it is for has a stage of this kind; remove it"
    )
    study.edit("more-chat.yaml", "stages:", "set: {rl: {optimizer.lr: 1}}\nstages:")
    assert refused(lambda: make_arm_plan("more-chat.yaml")).startswith("more-chat.yaml:2: set.rl: no arm")
