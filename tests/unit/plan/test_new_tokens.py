"""A stage may know more tokens than the weights that it begins with: asked for by name, proved, shown, hashed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.tokenizer import fingerprint
from megatron_ext.__main__ import main
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import load_recipe
from tests.support.pencil_project import PencilProject, record, refused

CHILD = """\
extends: pretrain.yaml
init_from: pretrain.yaml
data:
  tokenizer: larger
  blend: [{source: c.yaml, share: 1}]
"""
RESIZE = "resize_vocabulary=true"


@pytest.fixture
def project(project: PencilProject) -> PencilProject:
    """A stage that reads sources a and b, and one that begins with its weights and reads c with two tokens more."""
    project.write_source("c", tokens=1_000)
    write_larger({"<|tool|>": 100, "<|call|>": 101})
    Path("child.yaml").write_text(CHILD)
    return project


def write_larger(added: dict[str, int], *, renamed: tuple[str, str] = ("t5", "t5")) -> None:
    """The tokenizer of source c, made of the one of 100 tokens."""
    shutil.rmtree("data/larger", ignore_errors=True)
    shutil.copytree("data/tokenizer", "data/larger")
    fields = json.loads(Path("data/larger/tokenizer.json").read_text())
    fields["added_tokens"] = [{"content": token, "id": number, "special": True} for token, number in added.items()]
    fields["model"]["vocab"][renamed[1]] = fields["model"]["vocab"].pop(renamed[0])
    Path("data/larger/tokenizer.json").write_text(json.dumps(fields))
    for name in ("c", "c.validation"):
        file = Path(f"data/{name}.manifest.json")
        manifest = json.loads(file.read_text())
        manifest["tokenizer"]["fingerprint"] = fingerprint("data/larger")
        file.write_text(json.dumps(manifest))


def plan(*overrides: str, name: str = "child", may_be_provisional: bool = False) -> StagePlan:
    loaded = load_recipe(f"{name}.yaml", overrides=("model.vocab_size=102", *overrides))
    return make_stage_plan(loaded, may_be_provisional=may_be_provisional)


def test_new_tokens_are_refused_and_the_message_says_how_they_get_rows(project: PencilProject) -> None:
    message = refused(plan)
    assert "  special token '<|tool|>': id 100 here, none there" in message.splitlines()
    assert message.splitlines()[-1] == (
        f"  Take the tokenizer of {plan('init_from=null', name='pretrain').stage_id}, or give '<|tool|>' (id 100), "
        "'<|call|>' (id 101) new rows: add --set resize_vocabulary=true."
    )


def test_a_vocabulary_that_is_too_small_for_new_tokens_leads_to_the_key(project: PencilProject) -> None:
    too_small = refused(lambda: plan("model.vocab_size=101"), DataError)
    assert "raise that to at least 102 and add --set resize_vocabulary=true, which gives added tokens rows" in too_small
    raised = refused(lambda: plan("model.vocab_size=1_500"))
    assert "model.vocab_size: padded_vocab_size 2,048, and 1,024 in pretrain-" in raised
    assert "which gives the weights; keep it for the added tokens, with --set resize_vocabulary=true" in raised


def test_with_the_key_the_plan_has_the_new_rows_and_is_another_stage(project: PencilProject) -> None:
    child = plan(RESIZE)
    assert child.new_tokens is not None
    assert child.new_tokens.model_dump() == {
        "tokens": ({"token": "<|tool|>", "id": 100}, {"token": "<|call|>", "id": 101}),
        "known_tokenizer_fingerprint": fingerprint("data/tokenizer"),
        "known_vocab_size": 100,
        "unused_ids": (),
        "known_rows": 1024,
        "rows": 1024,
        "rule": "mean",
    }
    assert child.meaning["resize_vocabulary"] == "mean of tokens"
    without = plan("init_from=unresolved", may_be_provisional=True)
    assert without.meaning | {"init_from": 0, "resize_vocabulary": "mean of tokens"} == child.meaning | {"init_from": 0}


def test_the_padded_vocabulary_may_grow_and_not_shrink(project: PencilProject) -> None:
    grown = plan(RESIZE, "model.vocab_size=1025").new_tokens
    assert grown is not None
    assert (grown.known_rows, grown.rows) == (1024, 2048)
    project.edit("model.yaml", "vocab_size: 100", "vocab_size: 1_500")
    assert "model.vocab_size: padded_vocab_size 1,024, and 2,048 in pretrain-" in refused(lambda: plan(RESIZE))


def test_ids_that_moved_are_refused_with_the_key_too(project: PencilProject) -> None:
    write_larger({"<|tool|>": 100}, renamed=("t5", "u5"))
    message = refused(lambda: plan(RESIZE))
    assert "--set resize_vocabulary=true: resize_vocabulary: true takes a tokenizer that adds tokens to that" in message
    assert "data/larger is none: ids moved: 't5' is id none here, 5 there." in message
    assert "resize_vocabulary" not in refused(plan)  # it would not help


def test_the_tokenizer_of_weights_is_found_in_their_checkpoint_when_its_folder_has_changed(
    project: PencilProject,
) -> None:
    parent = record(plan(name="pretrain"), Path("runs"))
    shutil.copytree("data/tokenizer", f"runs/stages/{parent.stage_id}/checkpoints/step_10/tokenizer")
    named = (RESIZE, f"init_from={parent.stage_id}")
    expected = plan(*named)
    shutil.rmtree("data/tokenizer")
    assert plan(*named) == expected
    shutil.rmtree(f"runs/stages/{parent.stage_id}/checkpoints")
    assert "is not the tokenizer that the weights read with any more, and no checkpoint" in refused(
        lambda: plan(*named)
    )


def test_a_key_that_would_change_nothing_is_refused(project: PencilProject) -> None:
    assert refused(lambda: plan(RESIZE, "init_from=null")) == (
        "--set resize_vocabulary=true: resize_vocabulary: true, and no weights are taken that have a vocabulary; set "
        "init_from or remove it"
    )
    project.write_source("c", tokens=1_000)
    message = refused(lambda: plan(RESIZE, "data.tokenizer=tokenizer"))
    assert "resize_vocabulary: true, and tokenizer and padded vocabulary are those of pretrain-" in message


def test_the_plan_shows_new_tokens_and_their_rule(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "child.yaml", "--set", RESIZE, "--set", "model.vocab_size=1025"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert (
        "new tokens 2: '<|tool|>' (id 100), '<|call|>' (id 101); rows are the mean of the 100 that the weights know; "
        "padded vocabulary of the weights 1,024"
    ) in lines
