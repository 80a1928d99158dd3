"""Every YAML file under recipes/ is valid, and the demo divides for two ranks in every layout."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import megatron_ext.plan
import megatron_ext.recipe
from megatron_ext.plan.make import draft_plan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.study.validate import validate

REPOSITORY = Path(__file__).parents[3]
FILES = sorted(
    path.relative_to(REPOSITORY)
    for path in (REPOSITORY / "recipes").rglob("*.yaml")
    if path.parent.name != "evaluate"  # suites: tests/unit/evaluate/test_suite.py
)
DEMO = "recipes/demo/pretrain.yaml"
MODULES = [
    f"{package.__name__}.{module.name}"
    for package in (megatron_ext.recipe, megatron_ext.plan)
    for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_shipped_file_is_valid(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert validate(file).startswith(f"{file}: ok: ")


@pytest.mark.parametrize(
    ("overrides", "world_size", "pattern"),
    [
        ((), 2, "M-M*-M-"),
        (("parallel.use_distributed_optimizer=true",), 2, "M-M*-M-"),
        (("parallel.tensor_model_parallel_size=2",), 2, "M-M*-M-"),
        (("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"), 2, "M-M*-M-"),
        (("parallel.pipeline_model_parallel_size=2",), 2, "M-M|*-M-"),
        (("parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"), 4, "M-M|*-M-"),
    ],
)
def test_the_demo_divides_for_every_layout_of_two(overrides: tuple[str, ...], world_size: int, pattern: str) -> None:
    draft = draft_plan(load_recipe(DEMO, overrides=overrides), world_size=world_size)
    assert draft.layout.hybrid_layer_pattern == pattern


def test_the_demo_has_nothing_to_round() -> None:
    assert draft_plan(load_recipe(DEMO)).roundings == ()


@pytest.mark.parametrize("arm", ["ldq", "lmq", "alf", "alf_shq", "ldq_2x", "shq_2x"])
def test_the_sft_arms_of_the_study_differ_in_their_data_alone(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    recipes = [load_recipe(f"recipes/front_loading/sft/{name}.yaml").recipe for name in ("shq", arm)]
    held_equal = [recipe.model_dump(exclude={"data": {"blend"}, "budget": {"examples"}}) for recipe in recipes]
    assert held_equal[0] == held_equal[1]
    assert recipes[0] != recipes[1]


def test_the_demo_is_short() -> None:
    assert len((REPOSITORY / DEMO).read_text().splitlines()) < 40


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
