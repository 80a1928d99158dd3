"""`megatron-ext generate` on a checkpoint written here."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
from megatron.core import dist_checkpointing
from megatron.core.process_groups_config import ProcessGroupCollection

from data_tools.errors import DataError
from data_tools.tokenizer import Tokenizer
from megatron_ext.models.build import build_model
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.rollout.cli import find_checkpoint, in_one_process, main_generate
from megatron_ext.rollout.generate import generate
from tests.support.one_process import one_process, strengthen
from tests.support.plans import make_plan
from tests.support.toy_project import ToyProject

PROMPT = "one plus one"


@pytest.fixture(scope="module")
def tokenizer_folder(toy_project: ToyProject) -> Path:
    return toy_project.root / "data" / "tokenizer"


def make_stage_plan(tokenizer_folder: Path, **layout: object) -> StagePlan:
    tokenizer = Tokenizer.load(tokenizer_folder)
    return make_plan(
        model={"vocab_size": 512},
        model_size={"padded_vocab_size": 640},
        data={"tokenizer_vocab_size": tokenizer.vocab_size, "eod_id": tokenizer.eod_id},
        layout=layout,
    )


@pytest.fixture(scope="module")
def stage(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A stage's folder with checkpoints 2 and 10, and the greedy text of the second one."""
    folder = tmp_path_factory.mktemp("stage")
    # The plan of a pipeline-parallel run: one process must read its checkpoint all the same.
    plan = make_stage_plan(tokenizer_folder, pipeline_model_parallel_size=2)
    alone = in_one_process(plan)
    tokenizer = Tokenizer.load(tokenizer_folder)
    with one_process() as groups:
        for step, factor in ((2, 4.0), (10, 8.0)):
            model = strengthen(build_model(alone, groups), factor)
            write_checkpoint(folder / "checkpoints" / f"step_{step}", plan, model, groups, tokenizer_folder)
        new = generate(model, alone, tokenizer.encode(PROMPT), max_new_tokens=8)
    return folder, tokenizer.decode([token for token in new if token != tokenizer.eod_id])


def write_checkpoint(
    path: Path, plan: StagePlan, model: object, groups: ProcessGroupCollection, tokenizer_folder: Path
) -> None:
    path.mkdir(parents=True)
    state = {"model": model.sharded_state_dict(metadata={"dp_cp_group": groups.dp_cp})}  # type: ignore[attr-defined]
    dist_checkpointing.save(state, str(path))
    (path / "plan.json").write_text(plan.model_dump_json())
    shutil.copytree(tokenizer_folder, path / "tokenizer")


def arguments(checkpoint: Path, **changes: object) -> argparse.Namespace:
    values = {"prompt": PROMPT, "max_new_tokens": 8, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
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
