"""A run says which unfinished stage it leaves behind where the data of its recipe were replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.replaced_data import notes_on_replaced_data
from tests.support.plans import make_plan, make_source


def _plan(stage_id: str, data_id: str, recipe: str = "recipes/toy.yaml") -> StagePlan:
    return make_plan(stage_id=stage_id, recipe=recipe, data={"sources": (make_source(data_id=data_id * 64),)})


@pytest.fixture
def run_root(tmp_path: Path) -> Path:
    """A stage that stopped after step 7, on data aaa…"""
    folder = tmp_path / "stages" / "pretrain-old"
    (folder / "checkpoints" / "step_7").mkdir(parents=True)
    (folder / "plan.json").write_text(_plan("pretrain-old", "a").model_dump_json())
    return tmp_path


def test_a_stage_stopped_on_other_data_is_named_with_its_step_and_both_ids(run_root: Path) -> None:
    assert notes_on_replaced_data(run_root, _plan("pretrain-new", "b")) == [
        f"{run_root}/stages/pretrain-old: an unfinished stage of recipes/toy.yaml at step 7, on other data: source toy "
        "held aaaaaaaaaaaaaaaa… and holds bbbbbbbbbbbbbbbb… now. This run begins a new stage at step 1; restore the "
        "data to go on with that one."
    ]


def test_nothing_is_said_of_other_recipes_other_settings_and_finished_stages(run_root: Path) -> None:
    assert notes_on_replaced_data(run_root, _plan("pretrain-new", "b", recipe="recipes/other.yaml")) == []
    assert notes_on_replaced_data(run_root, _plan("pretrain-new", "a")) == []
    (run_root / "stages/pretrain-old/stage.json").write_text("{}")
    assert notes_on_replaced_data(run_root, _plan("pretrain-new", "b")) == []


def test_a_stage_that_goes_on_says_nothing_of_the_one_it_left(run_root: Path) -> None:
    (run_root / "stages/pretrain-new/checkpoints/step_2").mkdir(parents=True)
    assert notes_on_replaced_data(run_root, _plan("pretrain-new", "b")) == []


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"stage": "pretrain", "recipe": 3}'])
def test_foreign_files_are_passed_over(run_root: Path, content: str) -> None:
    (run_root / "stages/pretrain-old/plan.json").write_text(content)
    assert notes_on_replaced_data(run_root, _plan("pretrain-new", "b")) == []
