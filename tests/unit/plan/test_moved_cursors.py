"""What the plan permits and says behind `cursor: fresh` and `cursor: replay`, in later phases and stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import load_recipe
from tests.support.pencil_project import PencilProject, refused

PHASES = """\
extends: pretrain.yaml
data:
  blend: null
  phases:
    - {tokens: 320, blend: [{source: a.yaml, share: 1}]}
    - {tokens: 128, blend: [{source: a.yaml, share: 1, max_epochs: 2, cursor: replay}]}
    - {tokens: 512, blend: [{source: a.yaml, share: 1, max_epochs: 2}]}
budget: {tokens: 960}
"""
FIRST = """\
extends: pretrain.yaml
budget: {tokens: 320}
data:
  blend: [{source: a.yaml, share: 1}]
"""
SECOND = """\
extends: first.yaml
continue: first.yaml
data:
  blend: [{source: a.yaml, share: 1, max_epochs: 2, cursor: replay}]
"""
THIRD = """\
extends: first.yaml
continue: second.yaml
data:
  blend: [{source: a.yaml, share: 1, max_epochs: 2}]
"""
REFUSED = (
    "max_epochs: source 'a' goes on where fresh or replay has moved it to in an earlier phase or stage: documents may "
    "be read again, and 1 forbids it; raise max_epochs above 1"
)


@pytest.fixture
def project(project: PencilProject) -> PencilProject:
    """Source `a` of 1,000 tokens, read in three phases and in three stages, of which the second moves its cursor."""
    project.edit("pretrain.yaml", "warmup_tokens: 128,", "warmup_tokens: 128, horizon_tokens: 1_280,")
    for name, text in {"phases": PHASES, "first": FIRST, "second": SECOND, "third": THIRD}.items():
        Path(f"{name}.yaml").write_text(text)
    return project


def plan(name: str, *overrides: str) -> StagePlan:
    return make_stage_plan(load_recipe(f"{name}.yaml", overrides=overrides))


def refusal(name: str, *overrides: str) -> str:
    return refused(lambda: plan(name, *overrides))


@pytest.mark.parametrize("cursor", ["fresh", "replay"])
def test_a_phase_behind_a_moved_cursor_needs_permission_to_read_again(project: PencilProject, cursor: str) -> None:
    """Behind replay, 192 of the last 512 tokens are those that phase 1 read last."""
    moved = f"data.phases[1].blend[0].cursor={cursor}"
    assert plan("phases", moved).data.phases[2].sources[0].samples == 32
    assert f"data.phases[2].blend[0].{REFUSED}" in refusal("phases", moved, "data.phases[2].blend[0].max_epochs=1")


@pytest.mark.parametrize("cursor", ["fresh", "replay"])
def test_a_stage_behind_a_moved_cursor_needs_permission_to_read_again(project: PencilProject, cursor: str) -> None:
    project.edit("second.yaml", "cursor: replay", f"cursor: {cursor}")
    assert plan("third").data.sources[0].tokens_before == 640
    assert f"data.blend[0].{REFUSED}" in refusal("third", "data.blend[0].max_epochs=1")


@pytest.mark.parametrize("source", ["a", "b"])
def test_a_moved_cursor_is_known_behind_another_stage(project: PencilProject, source: str) -> None:
    Path("between.yaml").write_text(THIRD.replace("a.yaml", f"{source}.yaml"))
    project.edit("third.yaml", "continue: second.yaml", "continue: between.yaml")
    assert f"data.blend[0].{REFUSED}" in refusal("third", "data.blend[0].max_epochs=1")


def test_a_source_that_nobody_moved_needs_no_permission(project: PencilProject) -> None:
    stage = plan("third", "continue=first.yaml", "data.blend[0].max_epochs=1")
    assert [(source.tokens_before, source.max_epochs) for source in stage.data.sources] == [(320, 1)]


def test_weights_begin_a_moved_source_anew(project: PencilProject) -> None:
    Path("anew.yaml").write_text(THIRD.replace("continue: second", "continue: null\ninit_from: second"))
    Path("fourth.yaml").write_text(THIRD.replace("second", "anew").replace("2}", "3}"))
    stage = plan("fourth")
    assert stage.parent is not None
    assert [(read.tokens_read, read.is_moved) for read in stage.parent.sources] == [(320, False)]


LONGER = "training={sequence_length: 32, global_batch_size: 2}"
CUT_ANEW = "what is left of the window is laid end to end and cut anew"


def cut_anew(stage: StagePlan) -> list[str]:
    """The sources whose window is said to be cut anew."""
    return [note.split(":")[0] for note in stage.roundings if CUT_ANEW in note]


def test_only_a_window_that_goes_on_is_said_to_be_cut_anew(project: PencilProject) -> None:
    assert cut_anew(plan("second", LONGER, "data.blend[0].cursor=continue")) == ["source a"]
    assert cut_anew(plan("second", LONGER)) == []
    assert cut_anew(plan("second", LONGER, "data.blend[0].cursor=fresh")) == []


def test_a_source_that_nobody_read_since_the_weights_were_taken_has_no_window(project: PencilProject) -> None:
    Path("anew.yaml").write_text(SECOND.replace("continue:", "init_from:").replace(", cursor: replay", ""))
    project.edit("anew.yaml", "a.yaml", "b.yaml")
    Path("fourth.yaml").write_text(THIRD.replace("second", "anew"))
    stage = plan("fourth", LONGER)
    assert stage.parent is not None
    assert {read.source: read.sequence_lengths for read in stage.parent.sources} == {"a": (), "b": (16,)}
    assert cut_anew(stage) == []


THRICE = """\
data:
  blend: null
  phases:
    - {tokens: 64, blend: [{source: a.yaml, share: 1, max_epochs: 2, cursor: FIRST}]}
    - {tokens: 64, blend: [{source: a.yaml, share: 1, max_epochs: 2}]}
    - {tokens: 64, blend: [{source: a.yaml, share: 1, max_epochs: 2, cursor: replay}]}
budget: {tokens: 192}
training: {sequence_length: 32, global_batch_size: 2}
"""


def test_a_replay_forgets_the_lengths_before_it_in_its_stage(project: PencilProject) -> None:
    head = "extends: first.yaml\ncontinue: first.yaml\n"
    Path("thrice.yaml").write_text(head + THRICE.replace("FIRST", "replay"))
    assert len(plan("thrice").data.phases) == 3
    Path("thrice.yaml").write_text(head + THRICE.replace("FIRST", "continue"))
    assert "data.phases[2].blend[0].cursor: replay, but source 'a' was read at sequence_length 16 in" in refusal(
        "thrice"
    )


def test_a_replay_forgets_the_lengths_before_it_in_later_stages(project: PencilProject) -> None:
    project.edit("second.yaml", "continue: first.yaml", f"continue: first.yaml\n{LONGER.replace('=', ': ')}")
    Path("thrice.yaml").write_text("extends: first.yaml\ncontinue: second.yaml\n" + THRICE.replace("FIRST", "continue"))
    stage = plan("thrice")
    assert stage.parent is not None
    assert [read.sequence_lengths for read in stage.parent.sources] == [(32,)]
