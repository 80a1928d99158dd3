"""A stage begins with an imported model as with one that was trained here, and nothing continues it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.__main__ import main
from megatron_ext.convert.export import export_checkpoint
from megatron_ext.convert.import_hf import import_checkpoint
from megatron_ext.recipe.load import load_file
from megatron_ext.training.file_list import read_plan
from tests.support.toy_project import Run, ToyProject

COMMON = """\
extends: pretrain.yaml
model: {folder}/model.yaml
"""
PRETRAIN = """\
init_from: {stage_id}
data: {{tokenizer: {folder}/checkpoints/step_0/tokenizer}}
"""
SFT = """\
stage: sft
init_from: {stage_id}
data:
  tokenizer: {folder}/checkpoints/step_0/tokenizer
  blend: [{{source: words.yaml, share: 1}}]     # text without turns trains on all its tokens
  document_isolation: full
budget: {{tokens: 0, examples: 8}}
training: {{sequence_length: 512, global_batch_size: 8, micro_batch_size: 1, validation_tokens: 512}}
schedule: {{warmup_tokens: 0, warmup_ratio: 0.1}}
"""


@pytest.fixture(scope="module")
def imported(toy_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an imported stage: the toy run's model after a detour through Hugging Face."""
    place = tmp_path_factory.mktemp("imported")
    export_checkpoint(toy_run.stage_folder / "checkpoints" / "step_10", place / "hf")
    return import_checkpoint(place / "hf", place / "runs").folder


def run(project: ToyProject, imported: Path, text: str) -> Run:
    recipe = project.root / "from_hub.yaml"
    recipe.write_text((COMMON + text).format(stage_id=imported.name, folder=imported))
    return project.run(imported.parents[1], "training.max_steps=1", recipe=recipe)


@pytest.mark.parametrize("text", [PRETRAIN, SFT], ids=["pretrain", "sft"])
def test_a_stage_begins_with_imported_weights(text: str, toy_project: ToyProject, toy_run: Run, imported: Path) -> None:
    stage = run(toy_project, imported, text)
    assert stage.code == 0, stage.output
    assert f"begins with the weights of {imported}/checkpoints/step_0" in stage.output
    assert ": imported-hf, " in stage.output
    assert stage.losses[0] < toy_run.losses[-1] + 0.3
    assert stage.losses[0] < toy_run.losses[0] - 1  # what new weights have
    ledger = json.loads((stage.stage_folder / "checkpoints" / "step_1" / "ledger.json").read_text())
    first = ledger[0]
    assert (first["phase"], first["source"], first["read"]) == (0, "imported from hf", 0)


def test_the_model_file_is_the_model_of_the_plan(imported: Path) -> None:
    assert load_file(imported / "model.yaml") == read_plan(imported / "checkpoints" / "step_0").model


def test_an_import_is_not_continued(toy_project: ToyProject, imported: Path) -> None:
    refused = run(toy_project, imported, PRETRAIN.replace("init_from", "continue"))
    assert refused.code == 2
    assert "its stage is import, and this one is pretrain; only its weights can be taken" in refused.output


def test_an_import_that_is_gone_is_asked_for_by_the_command_that_makes_it(
    toy_project: ToyProject, imported: Path
) -> None:
    (imported / "stage.json").rename(imported / "away.json")
    refused = run(toy_project, imported, PRETRAIN + "seed: 7\n")  # a stage that has no checkpoint of its own yet
    (imported / "away.json").rename(imported / "stage.json")
    assert refused.code == 2
    assert f"megatron-ext import {imported.parents[2]}/hf --to {imported.parents[1]}" in refused.output


def test_an_import_is_shown_by_its_ledger_and_generates(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", str(imported)]) == 0
    assert "imported from hf" in capsys.readouterr().out
    assert main(["generate", str(imported), "--prompt", "1 plus", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("1 plus")
