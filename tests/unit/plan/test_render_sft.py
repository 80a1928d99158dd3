"""What a plan of a fine-tuning stage shows: drawn apart from read, what is not known as unknown, the parent first."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.render import print_plan
from megatron_ext.plan.render_data import chain_rows
from megatron_ext.plan.stage_plan import ChainStage, ParentPlan, StagePlan
from megatron_ext.plan.validate import validate_file
from tests.support.pencil_project import PencilProject
from tests.support.plans import make_plan
from tests.support.sft_project import make_sft_project


@pytest.fixture
def project(tmp_path: Path) -> PencilProject:
    return make_sft_project(tmp_path)


def shown(plan: StagePlan, capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_plan(plan, run_root=Path("runs"))
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_conversations_left_out_are_drawn_and_not_read(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(project.plan("training.sequence_length=8", "sft.overlong=drop"), capsys)
    assert "conversations 16 drawn, 12 read, without replacement, passes 1" in lines
    assert f"c 75 % 12 8 12 1 1 32 16 4 0 the assistant's turns {project.root}/data/c" in lines
    assert f"d 25 % 4 4 4 1 1 28 24 0 0 all tokens: no turns {project.root}/data/d" in lines


def test_split_conversations_are_read_in_pieces(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(project.plan("training.sequence_length=8", "sft.overlong=split"), capsys)
    assert "conversations 16 drawn, 20 pieces read, without replacement, passes 1" in lines


def test_what_declared_sizes_do_not_tell_is_unknown(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (project.root / "data").glob("c*"):
        file.unlink()
    with (project.root / "c.yaml").open("a") as source:
        source.write("declared_tokens: 1_000\ndeclared_documents: 100\n")
    lines = shown(make_stage_plan(project.load(), may_be_provisional=True), capsys)
    assert "conversations 16 drawn, unknown read, without replacement, passes 1" in lines
    assert "rows about 10 of 16 tokens, fill unknown; longer conversations: error" in lines
    assert "tokens about 160 processed, padding unknown; at most 148 trained" in lines
    assert f"c 75 % 12 unknown 100 0.12 1 about 120 unknown unknown unknown not built {project.root}/data/c" in lines


def test_the_learning_rate_of_a_stage_is_said_in_its_samples(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("sft.batch_unit=conversations", "training.global_batch_size=3")
    text = "\n".join(shown(project.plan(*keys), capsys))
    assert "cosine: 4 conversations of warmup, 12 of cosine" in text
    assert "cosine: 2 rows of warmup, 5 of cosine" in "\n".join(shown(project.plan(), capsys))


def test_facts_are_notes_and_what_is_rounded_is_rounded(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "note training.global_batch_size 2: the last of 4 steps has the 1 row that is left." in shown(
        project.plan(), capsys
    )


def test_validation_of_a_stage_is_in_rows(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("training.validation_interval_tokens=32", "training.validation_tokens=16")
    assert "validation every 1 step, up to 1 row of each source" in shown(project.plan(*keys), capsys)


@pytest.mark.parametrize("gives", ["everything", "weights"])
def test_the_stage_that_this_one_begins_from_comes_first(gives: str) -> None:
    chain = tuple(
        ChainStage(stage_id=name, recipe=f"{name}.yaml", total_steps=1, total_tokens=8) for name in ("oldest", "parent")
    )
    behind = ParentPlan(chain=chain, sources=())
    plan = make_plan(parent=behind) if gives == "everything" else make_plan(init_from=behind)
    label = "continues" if gives == "everything" else "init_from"
    assert [(name, said.split()[0]) for name, said in chain_rows(plan)[:2]] == [
        (label, "parent"),
        ("behind it", "oldest"),
    ]


def test_a_recipe_without_its_data_is_measured_in_conversations(project: PencilProject) -> None:
    for file in (project.root / "data").glob("c*"):
        file.unlink()
    assert validate_file(project.recipe).endswith("model pencil, 16 conversations, data not built yet")
