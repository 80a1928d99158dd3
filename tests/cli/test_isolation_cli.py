"""`megatron-ext validate --isolation`: what it says of a recipe, and what it cannot be asked."""

from __future__ import annotations

import pytest

from megatron_ext.__main__ import main
from tests.support.toy_project import ToyProject


def test_the_model_of_a_recipe_is_proved(
    toy_project: ToyProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toy_project.root)  # where the default site looks for data
    assert main(["validate", "--isolation", "pretrain.yaml"]) == 0
    _, said = capsys.readouterr().out.splitlines()
    assert said.startswith("pretrain.yaml: isolation holds: 4 documents in 64 tokens: changing one moves the others'")


def test_a_file_without_a_stage_has_no_model_to_prove(
    toy_project: ToyProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toy_project.root)
    assert main(["validate", "--isolation", "model.yaml"]) == 2
    assert "--isolation: model.yaml is no stage recipe" in capsys.readouterr().err
