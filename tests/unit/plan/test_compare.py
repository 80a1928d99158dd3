"""Two recipes side by side end in a verdict: the same stage, or two."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.plan.compare import print_comparison
from tests.support.pencil_project import PencilProject


def compared(project: PencilProject, capsys: pytest.CaptureFixture[str], *overrides: str) -> list[str]:
    print_comparison(project.load(), project.load(*overrides))
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_equal_recipes_are_one_stage(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(project, capsys) == ["no key differs", f"same stage id: {project.plan().stage_id}"]


def test_a_difference_of_placement_is_one_stage(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    lines = compared(project, capsys, "training.micro_batch_size=2")
    assert "training.micro_batch_size placement 1 default 2 --set training.micro_batch_size=2" in lines
    assert lines[-1] == f"same stage id: {project.plan().stage_id}"


def test_a_difference_of_meaning_is_another_stage(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    lines = compared(project, capsys, "optimizer.lr=2e-3")
    assert "optimizer.lr meaning 0.003 pretrain.yaml:14 0.002 --set optimizer.lr=2e-3" in lines
    other = project.plan("optimizer.lr=2e-3").stage_id
    assert lines[-1] == f"different stages: {project.plan().stage_id} and {other}"


def test_a_pattern_that_is_only_cut_is_placement(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("model.hybrid_layer_pattern=M-M|*M-", "parallel.pipeline_model_parallel_size=2")
    lines = compared(project, capsys, *overrides)
    assert any(line.startswith("model.hybrid_layer_pattern placement ") for line in lines)
    assert lines[-1].startswith("same stage id: ")


def test_without_data_the_keys_decide_as_far_as_they_can(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data/a.manifest.json").unlink()
    unknown = "stage ids are not known until the data is built; "
    assert compared(project, capsys, "seed=7")[-1] == unknown + "keys of the meaning that differ: 1"
    assert compared(project, capsys, "checkpoint.keep_last=7")[-1] == unknown + "keys of the meaning that differ: none"
