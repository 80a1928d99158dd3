"""`megatron-ext generate` on a checkpoint written here."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.tokenizer import Tokenizer
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.placement import placed
from megatron_ext.recipe.load import load_recipe
from megatron_ext.rollout.cli import find_checkpoint, main_generate
from megatron_ext.rollout.generate import generate
from megatron_ext.training.parts import make_parts
from megatron_ext.training.saving import CheckpointWrite
from megatron_ext.training.state import TrainState
from tests.support.one_process import one_process, strengthen
from tests.support.toy_project import ToyProject

PROMPT = "one plus one"


@pytest.fixture(scope="module")
def stage(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A stage's folder with checkpoints 2 and 10, and the greedy text of the second one."""
    folder = tmp_path_factory.mktemp("stage")
    # The plan of a pipeline-parallel run: one process must read its checkpoint all the same.
    loaded = load_recipe(
        toy_project.recipe, overrides=["parallel.pipeline_model_parallel_size=2"], site=toy_project.root / "site.yaml"
    )
    plan = make_stage_plan(loaded, world_size=2)
    alone = placed(plan)
    tokenizer = Tokenizer.load(Path(plan.data.tokenizer))
    with one_process() as groups:
        for step, factor in ((2, 4.0), (10, 8.0)):
            parts = make_parts(alone, groups)
            strengthen(parts.model.module, factor)
            CheckpointWrite(folder / "checkpoints", replace(parts, plan=plan), TrainState(step=step)).finish()
        new = generate(parts.model.module, alone, tokenizer.encode(PROMPT), max_new_tokens=8)
    return folder, tokenizer.decode([token for token in new if token != tokenizer.eod_id])


def arguments(checkpoint: Path, **changes: object) -> argparse.Namespace:
    values = {
        "chat": False,
        "prompt": PROMPT,
        "max_new_tokens": 8,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
    }
    return argparse.Namespace(checkpoint=checkpoint, **(values | changes))


def test_prints_the_prompt_and_the_models_continuation(
    stage: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, continuation = stage
    assert main_generate(arguments(folder / "checkpoints" / "step_10")) == 0
    assert capsys.readouterr().out == f"{PROMPT}{continuation}\n"


def test_a_stage_folder_stands_for_its_newest_checkpoint(stage: tuple[Path, str]) -> None:
    folder, _ = stage
    assert find_checkpoint(folder) == folder / "checkpoints" / "step_10"  # 10 is after 2


def test_an_empty_prompt_begins_a_document(stage: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = stage
    assert main_generate(arguments(folder, prompt="")) == 0
    assert capsys.readouterr().out.strip()


def test_a_stage_without_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(DataError, match="this stage has no complete checkpoint yet"):
        find_checkpoint(tmp_path)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a checkpoint: name a folder"):
        main_generate(arguments(tmp_path))


def test_a_checkpoint_that_is_gone_names_those_that_are_there(stage: tuple[Path, str]) -> None:
    folder, _ = stage
    with pytest.raises(DataError, match="step_4: not a checkpoint: there are step_2, step_10 beside it"):
        main_generate(arguments(folder / "checkpoints" / "step_4"))


def test_a_stage_that_was_not_taught_to_answer_is_asked_nothing(stage: tuple[Path, str]) -> None:
    folder, _ = stage
    with pytest.raises(DataError, match="name a checkpoint of an sft stage, or leave --chat out"):
        main_generate(arguments(folder, chat=True))
