"""A stage's blend may name blends: shares multiply, sizes weigh, permissions go down, names are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import load_recipe
from tests.support.pencil_project import PencilProject, refused

RECIPE = """\
extends: pretrain.yaml
data:
  blend:
    - {source: a.yaml, share: 0.5}
    - {source: inner.yaml, share: 0.5}
"""


@pytest.fixture
def project(project: PencilProject) -> PencilProject:
    """`inner` holds b (400 tokens) and c (1,200): 40 samples are 20 of a, and 20 of inner."""
    project.write_source("c", tokens=1_200)
    Path("nested.yaml").write_text(RECIPE)
    return project


def inner(text: str) -> None:
    Path("inner.yaml").write_text(f"blend: inner\n{text}")


def plan(*overrides: str) -> StagePlan:
    return make_stage_plan(load_recipe("nested.yaml", overrides=overrides))


def given(stage: StagePlan) -> dict[str, int]:
    return {source.source: source.samples for source in stage.data.sources}


@pytest.mark.parametrize(
    ("weighting", "b", "c"),
    [
        ("weighting: natural\nentries: [{source: b.yaml}, {source: c.yaml}]", 5, 15),
        ("weighting: equal\nentries: [{source: b.yaml}, {source: c.yaml}]", 10, 10),
        ("weighting: temperature\ntemperature: 2\nentries: [{source: b.yaml}, {source: c.yaml}]", 7, 13),
        ("entries: [{source: b.yaml, share: 0.2}, {source: c.yaml, share: 0.8}]", 4, 16),
        ("entries: [{source: b.yaml, tokens: 32}, {source: c.yaml, share: 1}]", 2, 18),
    ],
    ids=["natural", "equal", "temperature", "fixed", "tokens"],
)
def test_a_blend_divides_its_share_by_its_own_weighting(project: PencilProject, weighting: str, b: int, c: int) -> None:
    inner(weighting)
    assert given(plan()) == {"a": 20, "b": b, "c": c}


def test_a_blend_inside_a_blend_is_the_same_as_its_sources(project: PencilProject) -> None:
    inner("weighting: natural\nentries: [{source: b.yaml}, {source: c.yaml}]")
    shares = {"a": 0.5, "b": 0.125, "c": 0.375}
    entries = ", ".join(f"{{source: {name}.yaml, share: {share}}}" for name, share in shares.items())
    written = f"data.blend=[{entries}]"
    assert plan().stage_id == plan(written).stage_id
    Path("deep.yaml").write_text("blend: deep\nweighting: equal\nentries: [{source: inner.yaml}]")
    assert plan("data.blend[1].source=deep.yaml").stage_id == plan().stage_id


def test_the_smallest_permission_on_the_way_down_counts(project: PencilProject) -> None:
    inner("weighting: natural\nentries: [{source: b.yaml, max_epochs: 2}, {source: c.yaml}]")
    stage = plan("data.blend[1].max_epochs=3")
    assert {source.source: source.max_epochs for source in stage.data.sources} == {"a": 1, "b": 2, "c": 3}


def test_a_nested_source_that_falls_short_is_named_with_the_entry_of_the_stage(project: PencilProject) -> None:
    inner("weighting: equal\nentries: [{source: b.yaml}, {source: c.yaml}]")
    project.write_dataset("b", tokens=100)
    assert refused(plan).splitlines() == [
        'nested.yaml:5: data.blend[1].share: source "b" cannot supply its share.',
        "  needed   160 processed tokens (25.0 % of budget 640)",
        "  has      100 tokens x max_epochs 1 = 100",
        "  Lower budget.tokens to 384, or raise max_epochs to 2.",
    ]


def test_a_source_reached_twice_gives_the_sum_and_the_plan_says_so(project: PencilProject) -> None:
    inner("entries: [{source: a.yaml, share: 0.5}, {source: b.yaml, share: 0.5}]")
    stage = plan()
    assert given(stage) == {"a": 30, "b": 10}
    assert stage.roundings == ("source a is reached 2 times: shares summed.",)


def test_a_source_that_is_to_go_on_in_two_ways_is_refused(project: PencilProject) -> None:
    inner("entries: [{source: a.yaml, share: 0.5}, {source: b.yaml, share: 0.5}]")
    assert "source 'a' is to continue and replay at once; write one of them" in refused(
        lambda: plan("data.blend[1].cursor=replay")
    )


def test_what_is_wrong_below_a_blend_has_its_file_and_line(project: PencilProject) -> None:
    inner("weighting: natural\nentries:\n  - {source: b.yaml}\n  - {source: none.yaml}")
    message = refused(plan)
    assert message.startswith("inner.yaml:5: entries[1].source: none.yaml: no such file")
    inner("entries: [{source: b.yaml, share: 0.5}, {source: c.yaml, share: 0.4}]")
    assert "inner.yaml:2: entries: shares 0.5 + 0.4 sum to 0.9, must sum to 1; raise them by 0.1 in all" in refused(
        plan
    )
    inner("weighting: natural\nentries: [{source: inner.yaml}]")
    assert "a circle: inner.yaml -> inner.yaml" in refused(plan)


def test_two_files_with_one_name_are_refused_across_blends(project: PencilProject) -> None:
    Path("twin.yaml").write_text(Path("a.yaml").read_text())
    inner("weighting: natural\nentries: [{source: twin.yaml}]")
    assert "twin.yaml:1: source: 'a' is the name of a.yaml:1 too" in refused(plan)


def test_a_source_of_a_nested_blend_that_would_not_be_read_is_to_leave_that_blend(project: PencilProject) -> None:
    """Taking the entry out of the stage's blend would take the other source away as well."""
    inner("entries: [{source: b.yaml, share: 0.01}, {source: c.yaml, share: 0.99}]")
    assert refused(plan).endswith(
        "0.005 of 40 samples is less than one, so 'b' would not be read; raise the share or budget.tokens, or take the "
        "source out of inner.yaml"
    )
