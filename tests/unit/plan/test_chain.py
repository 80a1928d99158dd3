"""Phases and stages that continue one another: rounded together, counted together, one learning rate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.errors import DataError, RecipeError
from megatron_ext.__main__ import main
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.stage_plan import SEMANTICS_VERSION, StagePlan
from megatron_ext.recipe.load import load_recipe
from tests.support.pencil_project import PencilProject, record, refused

CHILD = """\
extends: pretrain.yaml
continue: pretrain.yaml
data:
  blend:
    - {source: a.yaml, share: 0.5}
    - {source: b.yaml, share: 0.5, max_epochs: 2}
"""
PHASES = """\
extends: pretrain.yaml
data:
  blend: null
  phases:
    - {tokens: 640, blend: [{source: a.yaml, share: 0.75}, {source: b.yaml, share: 0.25}]}
    - {tokens: 640, blend: [{source: a.yaml, share: 0.5}, {source: b.yaml, share: 0.5, max_epochs: 2}]}
budget: {tokens: 1_280}
"""


@pytest.fixture
def project(project: PencilProject) -> PencilProject:
    """Two stages of 640 tokens, 10 steps of 4 samples of 16 tokens, under one horizon of 1,280."""
    project.edit("pretrain.yaml", "warmup_tokens: 128,", "warmup_tokens: 128, horizon_tokens: 1_280,")
    Path("child.yaml").write_text(CHILD)
    Path("phases.yaml").write_text(PHASES)
    return project


def plan(name: str, *overrides: str) -> StagePlan:
    return make_stage_plan(load_recipe(f"{name}.yaml", overrides=overrides))


def refusal(name: str, *overrides: str) -> str:
    return refused(lambda: plan(name, *overrides))


def given(stage: StagePlan) -> list[dict[str, int]]:
    return [{source.source: source.samples for source in phase.sources} for phase in stage.data.all_phases()]


def test_phases_have_their_own_shares_and_sum_to_the_stage(project: PencilProject) -> None:
    stage = plan("phases")
    assert given(stage) == [{"a": 30, "b": 10}, {"a": 20, "b": 20}]
    assert [(source.source, source.samples, source.epochs) for source in stage.data.sources] == [
        ("a", 50, 0.8),
        ("b", 30, 1.2),
    ]


def test_phases_must_sum_to_the_budget(project: PencilProject) -> None:
    assert refusal("phases", "budget.tokens=640") == (
        "--set budget.tokens=640: data.phases: tokens 640 + 640 sum to 1,280, "
        "budget.tokens is 640; change the one or the other"
    )


def test_a_stage_has_a_blend_or_phases_and_not_both(project: PencilProject) -> None:
    assert "data.phases: set together with blend" in refusal("phases", "data.blend=[{source: a.yaml, share: 1}]")
    assert refusal("child", "data.blend=null") == (
        "--set data.blend=null: data.blend: required and not set; write blend, or phases that each have one"
    )


def test_the_shares_of_each_phase_sum_to_one(project: PencilProject) -> None:
    assert refusal("phases", "data.phases[1].blend[0].share=0.4").endswith(
        "data.phases[1].blend: shares 0.4 + 0.5 sum to 0.9, must sum to 1; raise them by 0.1 in all"
    )


def test_a_phase_ends_with_a_step_and_the_rounding_is_said(project: PencilProject) -> None:
    stage = plan("phases", "data.phases[0].tokens=600", "data.phases[1].tokens=680")
    assert [phase.samples for phase in stage.data.phases] == [36, 44]  # 9.4 and 20 steps
    assert stage.roundings == (
        "data.phases[0].tokens 600 does not end with a step: rounded to 576 tokens.",
        "data.phases[1].tokens 680 does not end with a step: rounded to 704 tokens.",
    )


def test_a_phase_without_a_step_is_refused(project: PencilProject) -> None:
    assert "data.phases[0].tokens: 16 tokens end before the first step" in refusal(
        "phases", "data.phases[0].tokens=16", "data.phases[1].tokens=1264"
    )


def test_passes_are_counted_over_the_phases(project: PencilProject) -> None:
    assert refusal("phases", "data.phases[1].blend[1].max_epochs=1").splitlines() == [
        'phases.yaml:6: data.phases[1].blend[1].share: source "b" cannot supply its share.',
        "  needed   320 processed tokens (50.0 % of budget 640)",
        "  read     160 before, in earlier phases and stages",
        "  has      400 tokens x max_epochs 1 = 400",
        "  Lower the share to 0.3500 and raise others by as much, or raise max_epochs to 2.",
    ]


def test_a_floor_counts_what_earlier_phases_have_read(project: PencilProject) -> None:
    assert plan("phases", "data.phases[1].blend[1].min_epochs=1.2").data.phases[1].sources[1].samples == 20
    assert refusal("phases", "data.phases[1].blend[1].min_epochs=1.25").splitlines() == [
        'phases.yaml:6: data.phases[1].blend[1].share: source "b" is read less often than it must.',
        "  gives    320 processed tokens (50.0 % of budget 640)",
        "  read     160 before, in earlier phases and stages",
        "  wanted   400 tokens x min_epochs 1.25 = 500",
        "  Raise the share to 0.5250 and lower others by as much, or lower min_epochs to 1.2.",
    ]


def test_the_lower_share_behind_another_phase_makes_the_plan_pass(project: PencilProject) -> None:
    shares = ("data.phases[1].blend[1].share=0.35", "data.phases[1].blend[0].share=0.65")
    assert given(plan("phases", "data.phases[1].blend[1].max_epochs=1", *shares))[1] == {"a": 26, "b": 14}


def test_a_continuation_begins_where_its_parent_ends(project: PencilProject) -> None:
    parent, child = plan("pretrain"), plan("child")
    assert child.parent is not None
    assert child.parent.stage_id == parent.stage_id
    assert [(read.source, read.tokens_read) for read in child.parent.sources] == [("a", 480), ("b", 160)]
    assert (child.batch.tokens_before, child.batch.total_tokens, child.batch.end_tokens) == (640, 640, 1_280)
    assert [source.tokens_before for source in child.data.sources] == [480, 160]
    assert (child.schedule, child.schedule.horizon_samples) == (parent.schedule, 80)


def test_passes_are_counted_over_the_chain(project: PencilProject) -> None:
    message = refusal("child", "data.blend[1].max_epochs=1")
    assert "  read     160 before, in earlier phases and stages\n" in message
    assert "Lower budget.tokens to 448, " in message
    assert plan("child", "data.blend[1].max_epochs=1", "budget.tokens=448").data.sources[1].samples == 14
    assert "cannot supply" in refusal("child", "data.blend[1].max_epochs=1", "budget.tokens=512")


def test_another_parent_is_another_stage(project: PencilProject) -> None:
    before = plan("child").stage_id
    project.edit("pretrain.yaml", "share: 0.75", "share: 0.5")
    project.edit("pretrain.yaml", "share: 0.25", "share: 0.5")
    assert plan("child").stage_id != before
    assert plan("child", "continue=null", "schedule.horizon_tokens=null").stage_id != before


def test_the_same_tokens_in_one_stage_are_no_continuation(project: PencilProject) -> None:
    assert len({plan(name).stage_id for name in ("pretrain", "child", "phases")}) == 3


def test_stages_are_rounded_together(project: PencilProject) -> None:
    """608 and 672 tokens are 9.5 and 10.5 steps, which alone would be 10 and 11."""
    project.edit("pretrain.yaml", "budget: {tokens: 640}", "budget: {tokens: 608}")
    child = plan("child", "budget.tokens=672")
    assert (child.batch.tokens_before, child.batch.total_steps) == (640, 10)
    assert child.roundings[0] == (
        "budget.tokens 672 behind 608 in the stages before, which read 640: rounded to 10 steps, 640 tokens, "
        "so that the chain reads 1,280 of 1,280."
    )


def test_a_chain_may_not_outgrow_its_horizon(project: PencilProject) -> None:
    assert refusal("child", "budget.tokens=704") == (
        "pretrain.yaml:15: schedule.horizon_tokens: 1,280 is less than the chain: the stages before ask for 640 and "
        "budget.tokens is 704, 1,344 in all; raise it in the first stage, or lower the budgets"
    )
    assert "1,280 is less than the chain: budget.tokens is 1,920" in refusal("pretrain", "budget.tokens=1920")


def test_a_parent_without_a_horizon_has_no_schedule_left(project: PencilProject) -> None:
    project.edit("pretrain.yaml", "horizon_tokens: 1_280, ", "")
    assert refusal("child") == (
        "child.yaml:2: continue: pretrain.yaml: its learning rate ends with its own budget; set "
        "schedule.horizon_tokens there, to the tokens of the whole chain"
    )


def test_a_constant_rate_needs_no_horizon(project: PencilProject) -> None:
    project.edit(
        "pretrain.yaml", "style: wsd, warmup_tokens: 128, horizon_tokens: 1_280, decay_tokens: 256", "style: constant"
    )
    assert plan("child").batch.tokens_before == 640


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr: 0.001, and 0.003 in the stage that this one continues; write the same"),
        ("schedule.warmup_tokens=64", "schedule.warmup_tokens: 64, and 128 in the stage that this one continues"),
        ("schedule.horizon_tokens=1344", "schedule.horizon_tokens: 1,344, and 1,280 in the stage"),
        ("precision=bf16", "precision: 'bf16', and 'fp32' in the stage"),
        ("seed=7", "seed: 7, and 1,234 in the stage"),
        ("model.hidden_size=32", "model.hidden_size: 32, and 64 in the stage"),
    ],
)
def test_what_a_chain_holds_equal_is_checked(project: PencilProject, override: str, said: str) -> None:
    assert said in refusal("child", override)


def test_a_warmup_ratio_is_of_the_horizon_so_that_a_chain_may_write_it(project: PencilProject) -> None:
    """A tenth of 1,280 tokens: 8 samples of 16, in both stages."""
    project.edit("pretrain.yaml", "warmup_tokens: 128,", "warmup_ratio: 0.1,")
    assert [plan(name).schedule.warmup_samples for name in ("pretrain", "child")] == [8, 8]
    assert refusal("child", "schedule.warmup_ratio=0.2") == (
        "--set schedule.warmup_ratio=0.2: schedule.warmup_ratio: 0.2: a warmup of 256 tokens, and 128 in the stage "
        "that this one continues; write the same"
    )
    assert refusal("pretrain", "schedule.warmup_ratio=0.9") == (
        "--set schedule.warmup_ratio=0.9: schedule.warmup_ratio: 0.9: 1,152 + decay_tokens 256 = 1,408 do not fit in "
        "the 1,280 tokens of schedule.horizon_tokens; lower them or raise that"
    )


LONGER = "training={sequence_length: 32, global_batch_size: 2}"


def test_the_samples_may_become_longer_and_all_is_counted_in_tokens(project: PencilProject) -> None:
    child = plan("child", LONGER)
    assert (child.batch.tokens_before, child.batch.total_steps, child.batch.end_tokens) == (640, 10, 1_280)
    assert [source.samples for source in child.data.sources] == [10, 10]
    assert child.schedule == plan("pretrain").schedule  # in samples of 16 tokens still
    assert (
        "source b: training.sequence_length is 32, and was 16 when it was last read: what is left of the window is "
        "laid end to end and cut anew. No token is left out; labels that do not follow their input there are not "
        "trained on, and the ledger counts them as masked."
    ) in child.roundings


def test_passes_are_counted_over_samples_of_different_lengths(project: PencilProject) -> None:
    message = refusal("child", LONGER, "data.blend[1].max_epochs=1")
    assert "  needed   320 processed tokens (50.0 % of budget 640)\n  read     160 before" in message
    longer = plan("child", LONGER, "data.blend[1].max_epochs=1", "budget.tokens=448")
    assert longer.data.sources[1].samples == 7  # 160 + 7 x 32 = 384 of 400 tokens


def test_a_third_stage_knows_all_lengths_of_a_source(project: PencilProject) -> None:
    text = CHILD + "budget: {tokens: 320}\ntraining: {sequence_length: 32, global_batch_size: 2}\n"
    Path("child.yaml").write_text(text)
    Path("third.yaml").write_text(CHILD.replace("continue: pretrain", "continue: child") + "budget: {tokens: 320}\n")
    third = plan("third")
    assert third.parent is not None
    assert [read.sequence_lengths for read in third.parent.sources] == [(16, 32), (16, 32)]
    assert third.batch.tokens_before == 960


def test_a_replay_that_changes_the_cutting_in_mid_stage_is_refused(project: PencilProject) -> None:
    phases = (
        "data.phases=[{tokens: 320, blend: [{source: a.yaml, share: 1}]}, "
        "{tokens: 320, blend: [{source: a.yaml, share: 1, max_epochs: 2, cursor: replay}]}]"
    )
    assert (
        "data.phases[1].blend[0].cursor: replay, but source 'a' was read at sequence_length 16 in the stages before, "
        "and goes on from there in an earlier phase; replay it in a stage of its own, which continues this one"
    ) in refusal("child", "data.blend=null", phases, LONGER)
    assert plan("child", "data.blend=null", phases).data.phases[1].sources[0].cursor == "replay"


def test_the_batch_may_grow_from_stage_to_stage(project: PencilProject) -> None:
    child = plan("child", "training.global_batch_size=8")
    assert (child.batch.total_steps, child.batch.end_tokens) == (5, 1_280)


def test_a_ramp_lies_in_the_first_stage_and_the_chain_ends_on_the_horizon(project: PencilProject) -> None:
    """7 steps of 2 samples come first: 14 + 7 x 4 = 42 samples, and 10 x 4 more are the 82 of the horizon."""
    ramp = "ramp_tokens: 224\n  ramp_start_batch_size: 2\n  ramp_increment: 2"
    project.edit("pretrain.yaml", "global_batch_size: 4", f"global_batch_size: 4\n  {ramp}")
    child = plan("child")
    assert (child.batch.tokens_before, child.batch.ramp, child.batch.total_steps) == (42 * 16, (), 10)
    assert child.batch.end_tokens == 16 * child.schedule.horizon_samples == 16 * 82
    assert any("the ramp lies in the first stage of the chain" in sentence for sentence in child.roundings)


def test_a_phase_may_not_end_inside_the_ramp(project: PencilProject) -> None:
    ramp = ("training.ramp_tokens=224", "training.ramp_start_batch_size=2", "training.ramp_increment=2")
    stage = plan("phases", *ramp)
    assert [phase.samples for phase in stage.data.phases] == [42, 40]
    tokens = ("data.phases[0].tokens=160", "data.phases[1].tokens=1120")
    assert "data.phases[0].tokens: 160 tokens end inside the ramp" in refusal("phases", *ramp, *tokens)


def test_a_source_replaced_between_the_stages_is_refused(project: PencilProject) -> None:
    parent = record(plan("pretrain"), Path("runs"))
    project.write_dataset("b", tokens=410)
    message = refused(lambda: plan("child", f"continue={parent.stage_id}"), DataError)
    assert message.startswith("b.yaml:2: prefix: source 'b' was read as ")
    assert "restore the data, or give the new data a name of its own. The same text in other shards is other" in message


def test_a_held_out_set_that_the_stages_before_trained_on_is_refused(project: PencilProject) -> None:
    project.write_source("c", tokens=500)
    project.edit("child.yaml", "source: a.yaml", "source: c.yaml")
    project.edit("c.yaml", "validation_prefix: c.validation", "validation_prefix: a")
    assert refused(lambda: plan("child"), DataError) == (
        "c.yaml:3: validation_prefix: holds the same tokens as source 'a', which the stages before have trained on; "
        "tokenize documents into it that the chain has not read"
    )


def test_a_source_as_long_as_one_that_was_read_is_said_to_be_perhaps_the_same(project: PencilProject) -> None:
    """`a` with its documents in two shards, under another name: 480 tokens of it were read."""
    project.write_source("c", tokens=990)
    project.write_dataset("rest", tokens=10)
    for number, name in enumerate(("c", "rest")):
        for suffix in ("bin", "idx", "manifest.json"):
            Path(f"data/{name}.{suffix}").rename(f"data/c-{number:05}.{suffix}")
    project.edit("child.yaml", "source: a.yaml", "source: c.yaml")
    assert plan("child").roundings == (
        "source c: has 1,000 tokens, as many as source a that the stages before have read, and another data_id. If it "
        "is the same text in other shards, its reading begins anew: 480 tokens may be read again.",
    )
    assert plan("child", "data.blend[0].source=a.yaml").roundings == ()


def test_a_parent_may_be_named_by_its_id(project: PencilProject) -> None:
    parent = record(plan("pretrain"), Path("runs"))
    assert plan("child", f"continue={parent.stage_id}").stage_id == plan("child").stage_id


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "--json"],
        ["plan"],
        ["plan", "--suggest", "--world-size", "2", "--gpu-memory", "80GB"],
        ["diff", "child.yaml"],
    ],
)
def test_a_parent_named_by_its_id_is_found_in_the_given_run_root(
    project: PencilProject, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    parent = record(plan("pretrain"), Path("elsewhere"))
    command = [*words[:1], "child.yaml", *words[1:], "--set", f"continue={parent.stage_id}"]
    assert main(command) == 2
    assert f"{parent.stage_id}: no such stage in runs/stages" in capsys.readouterr().err
    assert main([*command, "--run-root", "elsewhere"]) == 0
    assert "no such stage" not in capsys.readouterr().err


def test_a_parent_of_other_numerics_is_not_continued(project: PencilProject) -> None:
    parent = plan("pretrain")
    older = parent.model_copy(update={"meaning": parent.meaning | {"semantics_version": 0}})
    record(older, Path("runs"))
    assert refusal("child", f"continue={parent.stage_id}") == (
        f"--set continue={parent.stage_id}: continue: {parent.stage_id} was trained with semantics_version 0 of the "
        f"numerics, and this code has {SEMANTICS_VERSION}; train its recipe again, or go on with the code that trained "
        "it"
    )


def test_a_parent_that_is_nowhere_is_refused(project: PencilProject) -> None:
    Path("runs/stages/pretrain-1").mkdir(parents=True)
    assert refusal("child", "continue=pretrain-0") == (
        "--set continue=pretrain-0: continue: pretrain-0: no such stage in runs/stages; there are: pretrain-1. "
        "Name one of them, or the parent's recipe (a path ending in .yaml)"
    )
    assert refusal("child", "continue=none.yaml").startswith(
        "--set continue=none.yaml: continue: none.yaml: no such file"
    )


def test_a_circle_of_parents_is_refused(project: PencilProject) -> None:
    project.edit("pretrain.yaml", "stage: pretrain", "stage: pretrain\ncontinue: child.yaml")
    assert "continue: a circle: child.yaml -> pretrain.yaml -> child.yaml" in refusal("child")


def test_a_cursor_with_nothing_to_go_on_from_is_refused(project: PencilProject) -> None:
    assert "data.blend[0].cursor: replay, but source 'a' was not read before; remove it" in refusal(
        "pretrain", "data.blend[0].cursor=replay"
    )
    child = plan("child", "data.blend[0].cursor=fresh", "data.blend[0].max_epochs=2")
    assert child.data.phases[0].sources[0].cursor == "fresh"
    assert child.stage_id != plan("child").stage_id


@pytest.mark.parametrize("cursor", ["fresh", "replay"])
def test_a_cursor_that_reads_again_needs_permission(project: PencilProject, cursor: str) -> None:
    assert (
        f"data.blend[0].cursor: {cursor} reads documents of source 'a' again, and max_epochs 1 forbids it; "
        "raise max_epochs above 1, or write continue"
    ) in refusal("child", f"data.blend[0].cursor={cursor}", "data.blend[0].max_epochs=1")


def test_the_plan_shows_the_chain_and_its_passes(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "child.yaml"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["continues", plan("pretrain").stage_id, "pretrain.yaml:", "10", "steps,", "640", "tokens"] in lines
    assert ["chain", "1,280", "tokens", "with", "this", "stage"] in lines
    assert ["b", "50", "%", "20", "320", "400", "40", "0.8", "1.2", "2", "data/b"] in lines
    assert main(["plan", "pretrain.yaml"]) == 0
    assert "1,280 tokens; 640 are left to stages that continue this one" in capsys.readouterr().out
    assert main(["plan", "phases.yaml"]) == 0
    out = capsys.readouterr().out
    assert "phase 2 of 2: 640 tokens, 40 samples" in out
    assert ["b", "50", "%", "20", "320", "0.8", "1.2", "2", "continue"] in [line.split() for line in out.splitlines()]
    assert main(["plan", "child.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parent"]["chain"][0]["total_steps"] == 10


@pytest.mark.parametrize(
    "change",
    [
        ("data.phases[0].tokens=320", "data.phases[1].tokens=960"),
        ("data.phases[0].blend[0].share=0.5", "data.phases[0].blend[1].share=0.5"),
        ("data.phases[0].blend[0].source=c.yaml",),
        ("data.phases[1].blend[0].cursor=replay", "data.phases[1].blend[0].max_epochs=2"),
    ],
)
def test_what_a_phase_reads_is_part_of_the_meaning(project: PencilProject, change: tuple[str, ...]) -> None:
    project.write_source("c", tokens=1_000)
    assert plan("phases", *change, "data.phases[1].blend[1].max_epochs=3").stage_id != plan("phases").stage_id
    assert plan("phases", "data.phases[1].blend[1].max_epochs=3").stage_id == plan("phases").stage_id


def test_show_and_explain_know_the_word_continue(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "child.yaml"]) == 0
    assert "continue: pretrain.yaml" in capsys.readouterr().out
    assert main(["show", "child.yaml", "--explain", "continue"]) == 0
    assert "  hashed   yes, by the content behind the path" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="parent: unknown key"):
        load_recipe("child.yaml", overrides=["parent=pretrain.yaml"])
