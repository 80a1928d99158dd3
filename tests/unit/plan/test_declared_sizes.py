"""Data that is declared but not built can be planned, visibly and under a provisional id, and cannot be run."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import DataError, RecipeError
from megatron_ext.__main__ import main
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.plan.validate import validate_file
from megatron_ext.recipe.load import load_recipe
from tests.support.pencil_project import PencilProject

BASE = Path(__file__).parents[3] / "recipes/front_loading/pretrain/base_v1.yaml"


@pytest.fixture
def project(project: PencilProject) -> PencilProject:
    """Source `a` is declared with 2,000 tokens and not built; it has 1,000 when it is."""
    project.edit("a.yaml", "domain: math", "domain: math\ndeclared_tokens: 2K")
    Path("data/a.manifest.json").rename("data/hidden")
    return project


def provisional(project: PencilProject, *overrides: str) -> StagePlan:
    return make_stage_plan(project.load(*overrides), may_be_provisional=True)


def test_a_declared_size_stands_for_data_that_is_not_built(project: PencilProject) -> None:
    a, b = provisional(project).data.sources
    assert (a.is_declared, a.tokens, a.documents, a.samples, a.epochs) == (True, 2000, 0, 30, 0.24)
    assert (b.is_declared, b.tokens, b.samples) == (False, 400, 10)


def test_its_plan_is_provisional_until_the_data_is_built(project: PencilProject) -> None:
    stage_id = provisional(project).stage_id
    assert stage_id.startswith("pretrain-provisional-")
    assert len(stage_id) == len("pretrain-provisional-") + 16
    Path("data/hidden").rename("data/a.manifest.json")
    built = provisional(project)
    assert built.stage_id == project.plan().stage_id != stage_id
    assert built.data.sources[0].tokens == 1000


def test_another_declared_size_is_another_provisional_stage(project: PencilProject) -> None:
    before = provisional(project).stage_id
    project.edit("a.yaml", "2K", "3K")
    assert provisional(project).stage_id != before


def test_a_run_is_refused_with_what_is_to_be_built(project: PencilProject) -> None:
    with pytest.raises(
        DataError,
        match=r"a.yaml:2: prefix: data/a.manifest.json: not built yet \(data_root .* directory\); build it with",
    ):
        project.plan()


def test_without_the_tokenizer_the_vocabulary_is_the_model_s(project: PencilProject) -> None:
    for manifest in Path("data").glob("*.manifest.json"):
        manifest.unlink()
    project.edit("b.yaml", "domain: math", "domain: math\ndeclared_tokens: 400")
    Path("data/tokenizer").rename("data/other")
    data = provisional(project).data
    assert (data.tokenizer_fingerprint, data.tokenizer_vocab_size) == ("", 100)
    with pytest.raises(DataError, match="5 problems"):
        project.plan()


def test_a_source_that_is_neither_built_nor_declared_is_refused(project: PencilProject) -> None:
    Path("data/b.manifest.json").unlink()
    with pytest.raises(DataError) as caught:
        provisional(project)
    assert str(caught.value).startswith("b.yaml:2: prefix: data/b.manifest.json: not built yet")
    assert validate_file(project.recipe).endswith("640 tokens, data not built yet")


def test_a_share_must_fit_the_declared_size_too(project: PencilProject) -> None:
    project.edit("a.yaml", "2K", "480")
    with pytest.raises(RecipeError, match="cannot supply its share"):
        provisional(project)


def test_every_command_says_declared(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pretrain.yaml"]) == 0
    assert "2,000 declared" in capsys.readouterr().out
    assert main(["show", "pretrain.yaml"]) == 0
    assert capsys.readouterr().out.endswith("# a: 2,000 tokens declared, data not built yet\n")
    assert main(["validate", "pretrain.yaml"]) == 0
    assert capsys.readouterr().out.endswith(" (sizes declared, data not built yet)\n")


@pytest.mark.parametrize(
    "missing", [["a"], ["a.validation"], ["a", "a.validation"], ["a", "a.validation", "tokenizer"]]
)
def test_no_half_built_data_loses_the_mark(
    missing: list[str], project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data/hidden").rename("data/a.manifest.json")
    for name in missing:
        there = Path("data", name if name == "tokenizer" else f"{name}.manifest.json")
        there.rename(f"data/hidden-{name}")
    assert main(["plan", "pretrain.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pretrain-provisional-")
    (row,) = [line for line in lines if line.rstrip().endswith(" data/a")]
    assert "2,000 declared   not built" in row


def test_from_another_folder_nothing_is_built_and_the_mark_is_there(
    project: PencilProject, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("data/hidden").rename("data/a.manifest.json")
    project.edit("b.yaml", "domain: math", "domain: math\ndeclared_tokens: 400")
    recipe, site = project.recipe.absolute(), project.site.absolute()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    plan = make_stage_plan(load_recipe(recipe, site=site), may_be_provisional=True)
    assert [(source.is_declared, source.documents) for source in plan.data.sources] == [(True, 0), (True, 0)]
    assert "-provisional-" in plan.stage_id


def test_the_paper_s_run_is_planned_on_its_512_gpus() -> None:
    plan = make_stage_plan(load_recipe(BASE), world_size=512, may_be_provisional=True)
    assert plan.model_size.total_parameters == 8_100_852_736
    assert (plan.batch.total_steps, plan.batch.tokens_per_step) == (158_946, 6_291_456)
    assert (plan.layout.data_parallel_size, plan.batch.num_microbatches) == (64, 12)
    assert plan.data.sources[0].tokens == 6_200_000_000_000
