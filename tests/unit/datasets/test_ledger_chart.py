"""The chart of a ledger draws the phases of a whole chain, each to the tokens that it read."""

import json

import pytest
from matplotlib.image import imread

from data_tools.errors import DataError, UsageError
from megatron_ext.datasets.ledger import LedgerRow
from megatron_ext.datasets.ledger_chart import Stretch, draw_ledger, stretches_of
from megatron_ext.plan.stage_plan import ChainStage, ParentPlan
from tests.support.plans import make_plan


def _row(phase, source, read, epochs):
    return LedgerRow(phase, source, "general", source, read, read, epochs=epochs)


BASE = [_row(1, "a", 30, 0.3), _row(1, "b", 10, 0.5), _row(2, "a", 20, 0.2), _row(2, "b", 20, 1.0)]
CHILD = [_row(0, "a", 50, 0.5), _row(0, "b", 30, 1.5), _row(1, "a", 8, 0.08), _row(2, "a", 0, 0.0)]


@pytest.fixture
def checkpoint(tmp_path):
    chain = (ChainStage(stage_id="base", recipe="base.yaml", total_steps=2, total_tokens=80),)
    plan = make_plan(parent=ParentPlan(chain=chain, sources=()))
    path = tmp_path / "stages" / "child" / "checkpoints" / "step_1"
    path.mkdir(parents=True)
    (path / "plan.json").write_text(plan.model_dump_json())
    (path / "state.json").write_text("{}")
    return path


def _facts(stretches):
    return [(stretch.label, [(row.source, row.read) for row in stretch.rows]) for stretch in stretches]


def test_the_phases_of_the_stages_before_are_drawn_from_their_stage_json(checkpoint):
    base = checkpoint.parents[2] / "base"
    base.mkdir()
    (base / "stage.json").write_text(json.dumps({"ledger": [row.to_json() for row in BASE]}))
    assert _facts(stretches_of(CHILD, checkpoint)) == [
        ("stage 1, phase 1", [("a", 30), ("b", 10)]),
        ("stage 1, phase 2", [("a", 20), ("b", 20)]),
        ("stage 2", [("a", 8)]),
    ]


def test_without_the_stages_before_their_sum_is_drawn(checkpoint):
    assert _facts(stretches_of(CHILD, checkpoint)) == [
        ("before", [("a", 50), ("b", 30)]),
        ("stage 2", [("a", 8)]),
    ]


@pytest.mark.parametrize("content", ["{}", "{", "[]"])
def test_a_stage_before_without_a_ledger_is_refused_with_what_helps(checkpoint, content):
    file = checkpoint.parents[2] / "base" / "stage.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(DataError, match=r"stage\.json: has no ledger .* Restore it, or move it away; then"):
        stretches_of(CHILD, checkpoint)


def test_the_tokens_of_each_source_fill_the_height_that_they_have(tmp_path):
    file = tmp_path / "chart.png"
    draw_ledger(file, [Stretch("stage 1", (_row(1, "a", 30, 0.3), _row(1, "b", 10, 0.1)))], title="toy")
    pixels = imread(file)[:, :, :3]
    column = pixels[:, int(pixels.shape[1] * 0.97)]  # near the end of training
    blue, orange = ((abs(column - colour).sum(1) < 0.35).sum() for colour in ([0, 0.447, 0.698], [0.902, 0.624, 0]))
    assert blue / orange == pytest.approx(3, rel=0.05)


def test_what_is_no_png_or_has_read_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not end in .png"):
        draw_ledger(tmp_path / "chart.pdf", [], title="")
    with pytest.raises(UsageError, match=r"--png: .*/new: no such folder; make it, or name a file in one that is"):
        draw_ledger(tmp_path / "new" / "chart.png", [], title="")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="nothing was read yet"):
        draw_ledger(tmp_path / "chart.png", [Stretch("stage 1", (_row(1, "a", 0, 0.0),))], title="")
