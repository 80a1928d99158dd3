"""A stage that packs its documents: rows, passes, caps and shares counted from its lengths, said and prepared."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.indexed import IndexedReader
from megatron_ext.__main__ import main
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.render import print_plan
from megatron_ext.plan.stage_plan import PackedPlan, StagePlan
from megatron_ext.recipe.load import load_recipe
from tests.support.pencil_project import PencilProject, refused
from tests.support.sft_project import LONG as LONG_TALK
from tests.support.sft_project import SHORT, write_chat

PACKED = "data.packing=best_fit"
CHILD = """\
extends: pretrain.yaml
continue: pretrain.yaml
data: {packing: best_fit}
"""


def rows(project: PencilProject, *overrides: str) -> PackedPlan:
    """Of source `a`: 100 documents of 10 tokens."""
    packed = project.plan(PACKED, *overrides).data.sources[0].packed
    assert packed is not None
    return packed


def test_a_row_of_16_holds_one_document_of_10_and_its_last_token_has_no_label(project: PencilProject) -> None:
    packed = rows(project)
    assert (packed.rows, packed.documents, packed.pieces, packed.tokens) == (100, 100, 100, 1_000)
    assert packed.unlabelled == 100


def test_passes_count_rows_and_not_tokens(project: PencilProject) -> None:
    a, b = project.plan(PACKED).data.sources
    assert (a.samples, a.epochs, b.samples, b.epochs) == (30, 0.3, 10, 0.25)


def test_a_source_that_is_short_of_rows_is_refused_in_rows(project: PencilProject) -> None:
    shares = ("data.blend[0].share=0.1", "data.blend[1].share=0.9", "budget.tokens=1280")
    text = refused(lambda: project.plan(PACKED, *shares))
    assert "  has      40 rows of 16 = 640 tokens x max_epochs 1 = 640\n" in text


def test_the_table_says_of_how_many_rows_passes_are_counted(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    print_plan(project.plan(PACKED), run_root=Path("runs"))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "a 75 % 30 480 1,000 in 100 rows 100 0.3 1 data/a" in lines


LONG = ("training.sequence_length=8", "training.global_batch_size=8")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("split", (125, 100, 200, 0, 0)),  # 8 and 2 tokens each; four rests a row
        ("truncate", (100, 100, 100, 100, 200)),
    ],
)
def test_long_documents_give_the_rows_of_their_policy(
    project: PencilProject, policy: str, expected: tuple[int, ...]
) -> None:
    packed = rows(project, *LONG, f"data.long_documents={policy}")
    assert (packed.rows, packed.documents, packed.pieces, packed.cut, packed.cut_tokens) == expected


def test_a_source_of_which_every_document_is_dropped_is_refused(project: PencilProject) -> None:
    with pytest.raises(DataError, match=r"data/a: none of its 100 documents is left for rows of 8 tokens with data"):
        project.plan(PACKED, *LONG, "data.long_documents=drop")


def test_a_whole_pass_of_rows_may_be_read_and_not_one_more(project: PencilProject) -> None:
    """40 rows of b: with documents laid end to end its 400 tokens would give 24."""
    shares = ("data.blend[0].share=0.5", "data.blend[1].share=0.5")
    assert project.plan(PACKED, "budget.tokens=1280", *shares).data.sources[1].epochs == 1
    said = refused(lambda: project.plan(PACKED, "budget.tokens=1344", *shares))
    assert "needed   672 processed tokens (50.0 % of budget 1,344)" in said
    assert "has      40 rows of 16 = 640 tokens x max_epochs 1 = 640" in said
    assert "raise max_epochs to 2" in said


def test_natural_shares_follow_the_rows_so_that_sources_end_together(project: PencilProject) -> None:
    Path("both.yaml").write_text(
        "blend: both\nweighting: natural\nentries:\n  - {source: a.yaml}\n  - {source: b.yaml}\n"
    )
    stage = project.plan(PACKED, f"data.blend=[{{source: {project.root}/both.yaml, share: 1}}]", "budget.tokens=2240")
    assert [(source.samples, source.epochs) for source in stage.data.sources] == [(100, 1.0), (40, 1.0)]


def test_what_becomes_of_long_documents_is_asked_of_packed_rows_only(project: PencilProject) -> None:
    assert refused(lambda: project.load("data.long_documents=drop")) == (
        "--set data.long_documents=drop: data.long_documents: drop, but packing is none: there a long document runs on "
        "in the next row and nothing of it is lost; set packing to best_fit, or write split"
    )


def test_where_no_thinking_is_recorded_long_documents_are_split_and_the_plan_says_so(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    split = rows(project, *LONG, "data.long_documents=split")
    stage = project.plan(PACKED, *LONG, "data.long_documents=trim-thinking")
    assert stage.data.sources[0].packed == split
    print_plan(stage, run_root=Path("runs"))
    assert capsys.readouterr().out.count("no thinking recorded: split") == 2


def test_conversations_are_pretraining_data_where_rows_keep_documents_apart(project: PencilProject) -> None:
    """Eight of 4 tokens share four rows of 8; four of 12, 6 of them thinking, lose 4 each."""
    write_chat(project, "a", [SHORT] * 8 + [LONG_TALK] * 4, thinking=dict.fromkeys(range(8, 12), (2, 8)))
    packed = rows(project, *LONG, "data.long_documents=trim-thinking", "data.blend[0].max_epochs=9")
    assert (packed.rows, packed.cut, packed.cut_tokens, packed.long_documents) == (8, 4, 16, "trim-thinking")


def test_conversations_laid_end_to_end_are_refused_with_the_packing_that_takes_them(project: PencilProject) -> None:
    write_chat(project, "a", [SHORT] * 8 + [LONG_TALK] * 4)
    said = refused(project.plan, DataError)
    assert "data/a: holds conversations, which their chat template ends and no end-of-document id" in said
    assert "write data.packing: best_fit, or name the same text as tokenized with --append-eod" in said
    assert rows(project, "data.blend[0].max_epochs=9").documents == 12


def test_declared_sizes_suppose_rows_without_padding_and_say_so(project: PencilProject) -> None:
    project.edit("a.yaml", "domain: math", "domain: math\ndeclared_tokens: 2K")
    Path("data/a.manifest.json").unlink()
    stage = make_stage_plan(project.load(PACKED), may_be_provisional=True)
    assert stage.data.sources[0].epochs == 30 / 125
    assert any("the sizes of a are declared, so rows without padding" in note for note in stage.roundings)


def test_a_chain_keeps_packing_policy_and_length(project: PencilProject) -> None:
    project.edit("pretrain.yaml", "decay_tokens: 256}", "decay_tokens: 256, horizon_tokens: 1_280}")
    Path("child.yaml").write_text(CHILD)
    assert "data.packing: 'best_fit', and 'none' in the stage that this one continues" in refused(child)
    project.edit("pretrain.yaml", "tokenizer: tokenizer", "tokenizer: tokenizer\n  packing: best_fit")
    assert [(source.tokens_before, source.epochs) for source in child().data.sources] == [(480, 0.3), (160, 0.25)]
    assert "data.long_documents: 'truncate', and 'split' in the stage that this" in refused(
        lambda: child("data.long_documents=truncate")
    )
    assert "training.sequence_length: 32, and 16 in the stage that this one continues; write the same" in refused(
        lambda: child("training.sequence_length=32", "training.global_batch_size=2")
    )


def test_a_chain_that_packs_otherwise_hears_that_and_not_that_its_sources_are_short(project: PencilProject) -> None:
    project.edit("pretrain.yaml", "decay_tokens: 256}", "decay_tokens: 256, horizon_tokens: 1_280}")
    project.edit("pretrain.yaml", "tokenizer: tokenizer", "tokenizer: tokenizer\n  packing: best_fit")
    Path("child.yaml").write_text(CHILD)
    short = ("data.blend[0].share=0.1", "data.blend[1].share=0.9")  # 576 of the 640 positions of b, behind 160
    assert "cannot supply" in refused(lambda: child(*short))
    text = refused(lambda: child(*short, "data.packing=none"))
    assert "data.packing: 'none', and 'best_fit' in the stage that this one continues; write the same" in text


def child(*overrides: str) -> StagePlan:
    return make_stage_plan(load_recipe("child.yaml", overrides=overrides))


def test_passes_behind_the_weights_are_of_rows_though_the_last_stage_left_the_source_alone(
    project: PencilProject,
) -> None:
    """One pass over `a` is 100 rows of 16 with 10 tokens each: 1,600 positions, and 1,000 tokens."""
    project.edit("pretrain.yaml", "decay_tokens: 256}", "decay_tokens: 256, horizon_tokens: 3_200}")
    project.edit("pretrain.yaml", "tokenizer: tokenizer", "tokenizer: tokenizer\n  packing: best_fit")
    stages = {"first": ("", "a", 1_600), "second": ("continue: first.yaml", "b", 320)}
    stages["third"] = ("init_from: second.yaml", "a", 1_600)
    for name, (begin, source, tokens) in stages.items():
        blend = f"[{{source: {source}.yaml, share: 1, max_epochs: 2}}]"
        Path(f"{name}.yaml").write_text(
            f"extends: pretrain.yaml\n{begin}\ndata: {{blend: {blend}}}\nbudget: {{tokens: {tokens}}}\n"
        )
    stage = make_stage_plan(load_recipe("third.yaml"))
    assert stage.init_from is not None
    assert {read.source: read.passes_before_anew for read in stage.init_from.sources} == {"a": 1.0, "b": 0.5}


def test_prepare_counts_the_rows_once_and_plan_takes_them_up(
    project: PencilProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["prepare", "pretrain.yaml", "--set", PACKED]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "100", "100", "62.50", "%", "0", "0", "0"] in lines
    assert ["kept", "in", "runs/prepared"] in lines
    monkeypatch.setattr(IndexedReader, "lengths_between", None)  # nobody may read a length again
    assert main(["plan", "pretrain.yaml", "--set", PACKED]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["b", "40", "40", "62.50", "%", "0", "0", "0"] in lines


def test_prepare_says_that_cut_samples_need_nothing(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "pretrain.yaml"]) == 0
    assert "pretrain.yaml: nothing needs preparing in runs" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_what_only_looks_counts_anew_and_keeps_nothing(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "pretrain.yaml", "--set", PACKED]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "100", "100", "62.50", "%", "0", "0", "0"] in lines
    assert not Path("runs").exists()
    assert rows(project).rows == 100
    assert len(list(Path("runs/prepared").glob("rows-*/"))) == 2


def test_where_the_store_cannot_be_written_a_look_works_and_what_keeps_fails(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").write_text("a file where the store would be")
    looked_at = make_stage_plan(project.load(PACKED), may_be_provisional=True)
    assert looked_at.data.sources[0].packed is not None
    assert looked_at.data.sources[0].packed.rows == 100
    with pytest.raises(NotADirectoryError, match="runs/prepared"):
        rows(project)
    assert main(["prepare", "pretrain.yaml", "--set", PACKED]) == 4
    out, err = capsys.readouterr()
    assert "kept" not in out
    assert "runs/prepared: Not a directory" in err
