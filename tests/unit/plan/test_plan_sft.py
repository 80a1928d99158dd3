"""What an sft stage plans to read, refuses, and is."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_tools.drawing import Drawn
from data_tools.errors import DataError, RecipeError
from data_tools.manifest import read_manifest, write_manifest
from data_tools.pack_rows import Conversations, RowOptions, make_rows
from megatron_ext.__main__ import main
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.sft_checks import heaviest_step
from megatron_ext.plan.sft_rows import _made as rows_of_stage_made
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.recipe.step_weight import SAMPLE_WEIGHT
from tests.support.pencil_project import PencilProject, record, refused
from tests.support.sft_project import LONG, SHORT, make_sft_project, write_chat

CHANGES = {
    "examples": ["budget.examples=8"],
    "draw": ["sft.draw=with_replacement", "data.blend[0].max_epochs=9", "data.blend[1].max_epochs=9"],
    "passes": ["sft.passes=2", "data.blend[0].max_epochs=2", "data.blend[1].max_epochs=2"],
    "overlong": ["sft.overlong=drop"],
    "batch_unit": ["sft.batch_unit=conversations"],
    "pad_multiple": ["sft.pad_multiple=2"],
    "loss": ["sft.loss=sample"],
    "loss_switch_tokens": ["sft.loss_switch_tokens=50"],
    "warmup_ratio": ["schedule.warmup_ratio=0.5"],
}


@pytest.fixture
def project(tmp_path: Path) -> PencilProject:
    return make_sft_project(tmp_path)


def numbers(plan: StagePlan) -> tuple[int, int, int]:
    assert plan.sft is not None
    return plan.sft.rows, plan.batch.total_steps, plan.sft.trained_tokens


def test_rows_steps_and_trained_tokens_are_those_of_a_pencil(project: PencilProject) -> None:
    plan = project.plan()
    assert plan.sft is not None
    # 4 rows of 12 + 4, 2 of 7 + 7 and 1 of 4 x 4: 108 tokens in 7 rows of 16
    assert numbers(plan) == (7, 4, 8 * 2 + 4 * 9 + 4 * 6)
    assert plan.sft.padding == 7 * 16 - 108 == 4
    assert (plan.batch.total_samples, plan.batch.total_tokens) == (7, 112)
    assert plan.schedule.warmup_samples == 2  # a quarter of 7 rows
    assert [source.has_turns for source in plan.sft.sources] == [True, False]
    assert plan.roundings == ("training.global_batch_size 2: the last of 4 steps has the 1 row that is left.",)


def test_domains_of_conversations_are_those_of_their_manifest(project: PencilProject) -> None:
    source = project.plan().data.sources[0]
    manifest = read_manifest(source.prefix)
    write_manifest(source.prefix, replace(manifest, tokens_by_domain={"code": 8, "math": manifest.tokens - 8}))
    counted = project.plan().data.sources[0]
    assert counted.domain_shares == (("code", 8 / manifest.tokens), ("math", 1 - 8 / manifest.tokens))
    assert (source.domains_known, counted.domains_known) == ("declared", "counted over the whole source")


def test_steps_of_conversations_are_counted_in_conversations(project: PencilProject) -> None:
    plan = project.plan("sft.batch_unit=conversations", "training.global_batch_size=3")
    assert (plan.batch.total_samples, plan.batch.total_steps) == (16, 6)
    assert plan.batch.batch_size_at(12) == 3
    assert plan.batch.batch_size_at(15) == 1
    assert sum(source.conversations for source in plan.sft.sources) == 16  # type: ignore[union-attr]


def test_twice_the_epochs_reads_the_same_twice_and_twice_new_reads_more(project: PencilProject) -> None:
    once = project.plan("budget.examples=8")
    two_passes = project.plan("budget.examples=8", "sft.passes=2")
    two_new = project.plan("budget.examples=16")
    assert [[s.distinct for s in plan.sft.sources] for plan in (once, two_passes, two_new)] == [  # type: ignore[union-attr]
        [6, 2],
        [6, 2],
        [12, 4],
    ]
    assert [[s.conversations for s in plan.sft.sources] for plan in (two_passes, two_new)] == [[12, 4], [12, 4]]  # type: ignore[union-attr]


def test_a_source_is_not_read_more_often_than_it_may_be(project: PencilProject) -> None:
    message = refused(lambda: project.plan("sft.passes=3"))
    assert 'source "c" cannot supply its share.' in message
    assert "needed   36 conversations = 12 x sft.passes 3" in message
    assert "Lower budget.examples to 5, or raise max_epochs to 3." in message
    assert numbers(project.plan("sft.passes=3", "data.blend[0].max_epochs=3", "data.blend[1].max_epochs=3"))[0] == 21


def test_a_source_is_read_as_often_as_it_must_be(project: PencilProject) -> None:
    message = refused(lambda: project.plan("budget.examples=4", "data.blend[0].min_epochs=0.5"))
    assert 'source "c" is read less often than it must.' in message
    assert "gives    3 conversations = 3 x sft.passes 1" in message
    assert "Raise budget.examples to 8, or lower min_epochs to 0.25." in message
    assert project.plan("budget.examples=8", "data.blend[0].min_epochs=0.5").data.sources[0].samples == 6


@pytest.mark.parametrize(
    ("overlong", "rows", "said"),
    [
        ("drop", 8, "4 of 12 conversations are too long for a row and left out: 48 of 80 tokens."),
        ("truncate", 12, "4 of 12 conversations are too long for a row and lose their end: 16 of 80 tokens."),
        ("split", 14, "4 of 12 conversations are too long for a row and cut into pieces that do not see each other."),
    ],
)
def test_what_becomes_of_long_conversations_is_said(
    project: PencilProject, overlong: str, rows: int, said: str
) -> None:
    plan = project.plan("training.sequence_length=8", f"sft.overlong={overlong}")
    # 4 rows of two short ones, 4 of a text each; of the four long ones nothing, 8 tokens, or 8 and 4
    assert f"source c: {said}" in plan.roundings
    assert numbers(plan)[0] == rows


def test_long_conversations_are_refused_unless_the_recipe_says_what_becomes_of_them(project: PencilProject) -> None:
    message = refused(lambda: project.plan("training.sequence_length=8"), DataError)
    assert "sft.overlong: error, and 4 of 12 conversations drawn from" in message
    assert "the longest 12 (document 8)" in message


def test_long_conversations_that_are_not_drawn_are_no_error(project: PencilProject) -> None:
    write_chat(project, "c", [SHORT] * 99 + [(17, [(1, 17)])])
    plan = project.plan()  # draws 12 of the 100
    assert numbers(plan)[2] == 12 * 2 + 4 * 6
    assert "conversations held out in" in refused(lambda: project.plan("training.sequence_length=8"), DataError)
    write_chat(project, "c", [SHORT] * 11 + [(17, [(1, 17)])])
    assert "sft.overlong: error, and 1 of 12 conversations drawn" in refused(project.plan, DataError)


def test_a_conversation_without_anything_to_train_on_is_refused_or_left_out(project: PencilProject) -> None:
    write_chat(project, "c", [SHORT] * 8 + [LONG] * 3 + [(5, [])])
    message = refused(project.plan, DataError)
    assert "sft.untrained: error, and 1 conversation or piece of source 'c' has no token to train on: no" in message
    plan = project.plan("sft.untrained=skip")
    assert any("1 conversation or piece has no token to train on and is left out: 5 of" in s for s in plan.roundings)
    assert plan.sft is not None
    assert plan.sft.sources[0].untrained == 1


def test_a_stage_of_nothing_but_prompts_is_refused(project: PencilProject) -> None:
    write_chat(project, "c", [(5, []), (4, [])])
    only = (f"data.blend=[{{source: {project.root}/c.yaml, share: 1.0}}]", "budget.examples=2", "sft.untrained=skip")
    assert "no conversation is left to train on" in refused(lambda: project.plan(*only), DataError)


def test_blends_inside_the_blend_deal_out_conversations_by_their_sizes(project: PencilProject) -> None:
    (project.root / "union.yaml").write_text(
        "blend: union\nweighting: natural\nentries:\n  - {source: c.yaml}\n  - {source: d.yaml}\n"
    )
    union = f"data.blend=[{{source: {project.root}/union.yaml, share: 1.0}}]"
    plan = project.plan(union, "budget.examples=8")
    assert [source.samples for source in plan.data.sources] == [6, 2]  # 12 and 4 of 16
    project.edit("union.yaml", "weighting: natural", "weighting: fixed")
    project.edit("union.yaml", "{source: c.yaml}", "{source: c.yaml, tokens: 40}")
    project.edit("union.yaml", "{source: d.yaml}", "{source: d.yaml, share: 1.0}")
    assert "divides by tokens or epochs, and an sft stage deals out conversations" in refused(
        lambda: project.plan(union)
    )


def test_a_stage_whose_data_is_not_built_is_planned_from_declared_sizes(project: PencilProject) -> None:
    for file in (project.root / "data").glob("c*"):
        file.unlink()
    with (project.root / "c.yaml").open("a") as source:
        source.write("declared_tokens: 1_000\n")
    message = refused(lambda: make_stage_plan(project.load(), may_be_provisional=True))
    assert "declared_documents: not set, and source 'c' is not built" in message
    with (project.root / "c.yaml").open("a") as source:
        source.write("declared_documents: 100\n")
    plan = make_stage_plan(project.load(), may_be_provisional=True)
    assert plan.stage_id.startswith("sft-provisional-")
    assert plan.sft is not None
    assert [source.has_turns for source in plan.sft.sources] == [None, None]
    assert numbers(plan) == (10, 5, 12 * 10 + 4 * 7)  # 148 tokens in 9.25 rows of 16
    refused(project.plan, DataError)


def test_two_chat_templates_are_refused(project: PencilProject) -> None:
    write_chat(project, "c.validation", [SHORT], template="another")
    assert "a model learns one format" in refused(project.plan, DataError)


def test_a_missing_chat_template_is_asked_for(project: PencilProject) -> None:
    for name, talks in {"c": [SHORT] * 12, "c.validation": [SHORT]}.items():
        write_chat(project, name, talks, template="{{ messages }}")
    message = refused(project.plan, DataError)
    assert re.search(r"has not the chat template that made .*; copy that one to .*chat_template.jinja", message)
    file = project.root / "data" / "tokenizer" / "chat_template.jinja"
    file.write_text("{{ messages }}")
    plan = project.plan()
    assert plan.sft is not None
    assert plan.sft.chat_template == str(file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.document_isolation=attention", "data.document_isolation: attention: conversations that share a row"),
        ("training.micro_batch_size=2", "training.micro_batch_size: 2: a packed row is a microbatch"),
        ("budget.tokens=5", "budget.tokens: 5: stage sft is measured in budget.examples"),
        ("budget.examples=0", "budget.examples: required and not set"),
        ("schedule.warmup_tokens=5", "schedule.warmup_tokens: 5: how many tokens an sft stage reads"),
        ("sft.pad_multiple=3", "sft.pad_multiple: 3 does not divide training.sequence_length 16"),
        ("schedule={style: wsd, decay_tokens: 4}", "schedule.style: wsd needs the tokens of its decay"),
        ("data.blend[0].cursor=fresh", "data.blend[0].cursor: fresh: an sft stage draws anew"),
        ("stage=pretrain", "budget.tokens: required and not set"),
    ],
)
def test_keys_that_mean_nothing_in_the_stage_are_refused(project: PencilProject, override: str, message: str) -> None:
    assert message in refused(lambda: project.load(override), RecipeError)


def test_packing_of_documents_is_one_problem_and_no_more(project: PencilProject) -> None:
    assert refused(lambda: project.load("data.packing=best_fit"), RecipeError) == (
        "--set data.packing=best_fit: data.packing: best_fit: stage sft packs conversations whatever this says, and "
        "sft.overlong decides about long ones; remove it"
    )


def test_conversations_that_are_not_built_are_said_with_the_command_that_makes_conversations(
    project: PencilProject,
) -> None:
    (project.root / "data" / "c.manifest.json").unlink()
    with (project.root / "c.yaml").open("a") as file:
        file.write("adapter: openthoughts3\n")
    message = refused(project.plan, DataError)
    assert "python -m data_tools chat --input FILE.jsonl --adapter openthoughts3 --tokenizer" in message
    assert "--hold-out 1%" in message


def test_steps_are_filled_up_for_any_number_of_replicas_so_any_multiple_of_the_layout_may_start(
    project: PencilProject,
) -> None:
    loaded = project.load("parallel.tensor_model_parallel_size=2")
    message = refused(lambda: make_stage_plan(loaded, world_size=3, may_be_provisional=True), RecipeError)
    assert "= 2; start a multiple of 2 processes, or change the layout" in message


@pytest.mark.parametrize("unit", ["rows", "conversations"])
@pytest.mark.parametrize("overlong", ["drop", "trim-thinking"])
def test_a_stage_whose_conversations_fit_no_row_says_how_long_they_are(
    project: PencilProject, overlong: str, unit: str
) -> None:
    options = (f"sft.overlong={overlong}", f"sft.batch_unit={unit}", "training.sequence_length=2")
    message = refused(lambda: project.plan(*options), DataError)
    said = f"training.sequence_length: 2, and with sft.overlong {overlong} no conversation is left to train on"
    assert said in message
    assert "those of source 'c' have 4 to 12 tokens; lengthen the rows, or write another sft.overlong" in message
    assert "those of source 'd' have 7 to 7 tokens" in message
    assert f"c.validation: none of its 3 conversations leaves a token to train on in a row of {options[2]} " in (
        message.replace("sequence_length 2", "sequence_length=2")
    )
    assert "they have 4 to 12 tokens; raise training.sequence_length, write another sft.overlong, or hold" in message


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_of_the_section_changes_what_the_stage_is(project: PencilProject, key: str) -> None:
    assert project.plan(*CHANGES[key]).stage_id != project.plan().stage_id


def test_a_stage_that_will_run_keeps_its_rows_for_the_next_start(project: PencilProject) -> None:
    store = project.root / "runs" / "prepared"
    looked_at = make_stage_plan(project.load(), may_be_provisional=True)
    assert not store.exists()
    assert project.plan() == looked_at
    (kept,) = store.glob("conversations-*/")
    assert (kept / "pieces.npy").stat().st_size == 128 + 8 * 8 * 16
    rows_of_stage_made.cache_clear()
    (kept / "pieces.npy").rename(kept / "aside")
    with pytest.raises(DataError, match="is not the file"):
        make_stage_plan(project.load(), may_be_provisional=True)
    (kept / "aside").rename(kept / "pieces.npy")
    assert make_stage_plan(project.load(), may_be_provisional=True) == looked_at
    assert rows_of_stage_made.cache_info().misses == 0, "the rows were read, not made"


def test_rows_are_prepared_before_a_parent_is_named_and_the_run_takes_them(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = project.root / "runs"
    command = ["prepare", str(project.recipe), "--site", str(project.site), "--run-root", str(runs)]
    assert main([*command, "--set", "init_from=unresolved"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{project.recipe}: 7 rows of 4 steps are kept in {runs}/prepared",
        "init_from is unresolved: whether data and model fit the stage that will give the weights, the run says.",
    ]
    kept = {path: path.stat().st_mtime_ns for path in (runs / "prepared").rglob("*")}
    assert len([path for path in kept if path.name == "pieces.npy"]) == 1
    project.plan()
    assert {path: path.stat().st_mtime_ns for path in (runs / "prepared").rglob("*")} == kept
    assert main(command) == 0
    assert capsys.readouterr().out == f"{project.recipe}: 7 rows of 4 steps are kept in {runs}/prepared\n"


def test_rows_that_no_parent_could_use_are_not_prepared(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", str(project.recipe), "--site", str(project.site), "--set", "init_from=unresolved"]
    assert main([*command, "--set", "training.sequence_length=8"]) == 3
    assert "sft.overlong: error, and 4 of 12 conversations drawn from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        (1, None),
        (2, "1 row of padding is added to 7, 12.5 % of the work; larger steps or fewer ranks have less."),
        (4, "9 rows of padding are added to 7, 56.2 % of the work; larger steps or fewer ranks have less."),
    ],
)
def test_rows_of_padding_that_fill_the_ranks_are_said(project: PencilProject, ranks: int, said: str | None) -> None:
    """Steps of 2, 2, 2 and 1 rows."""
    found = [line for line in project.plan(world_size=ranks).roundings if line.startswith("parallel:")]
    among = f"parallel: rows of steps do not divide among {ranks} data-parallel ranks: "
    assert found == ([] if said is None else [among + said])


def test_permissions_and_layouts_leave_the_stage_what_it_is(project: PencilProject) -> None:
    before = project.plan().stage_id
    assert project.plan("sft.untrained=skip").stage_id == before
    assert project.plan(world_size=4).stage_id == before


def test_a_stage_without_a_parent_is_planned_and_does_not_run(project: PencilProject) -> None:
    message = refused(lambda: project.plan("init_from=null"))
    assert "init_from: unresolved; it can be planned so, and not run: add --set init_from=STAGE" in message
    plan = make_stage_plan(project.load("init_from=null"), may_be_provisional=True)
    assert plan.stage_id.startswith("sft-provisional-")
    assert plan.meaning["init_from"] == "unresolved"
    assert plan.meaning | {"init_from": project.plan().meaning["init_from"]} == project.plan().meaning


def test_held_out_texts_that_the_base_trained_on_are_refused(project: PencilProject) -> None:
    """100 texts of 10 tokens: `a`, of which the base reads 48."""
    project.edit("d.yaml", "validation_prefix: d.validation", "validation_prefix: a")
    assert refused(project.plan, DataError) == (
        f"{project.root}/d.yaml:3: validation_prefix: holds the same tokens as source 'a', which the stages before "
        "have trained on; tokenize documents into it that the chain has not read"
    )


def test_an_sft_stage_gives_its_weights_and_is_not_continued(project: PencilProject) -> None:
    constant = "schedule: {style: constant, warmup_tokens: 0, decay_tokens: null}"
    (project.root / "after.yaml").write_text(f"extends: base.yaml\ncontinue: pretrain.yaml\n{constant}\n")
    project.edit("pretrain.yaml", "style: cosine, warmup_ratio: 0.25", "style: constant")
    named = project.root / "after.yaml"
    recorded = record(project.plan(), project.root / "runs").stage_id
    for override, origin, parent in (
        ((), f"{named}:2", f"{project.root}/pretrain.yaml"),
        ((f"continue={recorded}",), f"--set continue={recorded}", recorded),
    ):
        loaded = load_recipe(named, overrides=override, site=project.site)
        assert refused(lambda loaded=loaded: make_stage_plan(loaded)) == (
            f"{origin}: continue: {parent}: its stage is sft, and this one is pretrain; only its weights can be taken: "
            "write init_from instead of continue"
        )


def test_packing_shows_how_far_it_is_on_a_terminal(project: PencilProject, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    project.plan("seed=77")  # rows of no other test, which a process keeps
    assert "packing conversations" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "32/32" in sys.stderr.getvalue(), "16, each cut and packed"  # type: ignore[attr-defined]


def test_a_step_that_weighs_more_than_core_counts_is_refused(project: PencilProject) -> None:
    """2^19 texts of 2 tokens, 8 a row, weigh 4096 each: 2^31 in one step, which an int32 reads as -2^31."""
    write_chat(project, "c", [(2, None)] * 2**19)
    write_chat(project, "c.validation", [(7, None)])
    keys = [f"data.blend=[{{source: {project.root}/c.yaml, share: 1.0}}]", f"budget.examples={2**19}"]
    message = refused(lambda: project.plan(*keys, "sft.loss=sample", "training.global_batch_size=65536"))
    assert "training.global_batch_size: 65,536 rows with sft.loss sample" in message
    assert "= 2,147,483,648 divide the gradient of a step, and core counts to 2,147,483,647" in message
    assert "lower it to 65,535 or less" in message
    assert project.plan(*keys, "sft.loss=sample", "training.global_batch_size=65535").batch.total_steps == 2
    switched = refused(lambda: project.plan(*keys, "sft.loss_switch_tokens=9", "training.global_batch_size=65536"))
    assert "65,536 rows with sft.loss sample" in switched
    assert project.plan(*keys, "training.global_batch_size=65536").batch.total_steps == 1


def test_what_a_split_conversation_weighs_is_shared_by_its_rows() -> None:
    """5 tokens without turns in rows of 3 train on 2 and 1 of them, beside 3 whole tokens that train on 2."""
    rows = make_rows(
        [Conversations(np.array([5, 3]), None)],
        [Drawn(np.zeros(2, np.int64), np.arange(2))],
        RowOptions(length=3, step=3, overlong="split"),
    )
    assert heaviest_step(rows, loss="token") == 2 + 1 + 2
    assert heaviest_step(rows, loss="sample") == 2 * SAMPLE_WEIGHT


@pytest.mark.parametrize(
    "changed",
    [
        ("seed=4321",),
        ("training.global_batch_size=3",),
        ("training.sequence_length=32", "training.validation_tokens=64"),
        ("budget.examples=8",),
        *(tuple(CHANGES[key]) for key in ("draw", "passes", "overlong", "batch_unit", "pad_multiple")),
    ],
)
def test_stages_that_read_other_rows_keep_others(project: PencilProject, changed: tuple[str, ...]) -> None:
    for overrides in ((), changed):
        make_stage_plan(project.load(*overrides))
    assert len(list((project.root / "runs" / "prepared").glob("conversations-*/"))) == 2
