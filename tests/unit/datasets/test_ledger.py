"""The ledger counts what was read as a recount by reading the data back does, in every phase and over the chain."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from megatron_ext.__main__ import main
from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.datasets.ledger import ledger_of, read_ledger
from megatron_ext.plan.lineage import chain_behind
from tests.support.sources import plan_reading, write_source

PHASES = [{"a": 6, "b": 2}, {"a": 4, "b": 8}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a has 120 tokens, 30 samples of 4; b has 24 tokens, 6 samples."""
    folder = tmp_path_factory.mktemp("sources")
    write_source(folder / "a", [[1 + d % 7, 2, 0] for d in range(40)])
    write_source(folder / "b", [[11 + d % 7, 12, 0] for d in range(8)])
    return folder


def _plan(folder, phases=PHASES, **changes):
    totals = Counter()
    for phase in phases:
        totals.update({name: value[0] if isinstance(value, tuple) else value for name, value in phase.items()})
    sources = {name: (folder / name, totals[name]) for name in "ab" if name in totals}
    return plan_reading(sources, global_batch_size=4, phases=phases, **changes)


def _after(plan, steps, parent=None):
    cursor = BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1)
    if parent is not None:
        cursor.take_over(parent)
    ids = [name for _ in range(steps) for batch in cursor.next_step() for name in batch.sample_ids]
    return cursor, ids


def _facts(rows):
    return [(row.phase, row.source, row.planned, row.read, row.first, row.repeated) for row in rows]


def test_a_finished_stage_has_read_what_was_planned_and_says_what_was_repeated(folder):
    plan = _plan(folder)
    cursor, _ = _after(plan, 5)
    rows = ledger_of(plan, cursor.state_dict())
    assert _facts(rows) == [
        (1, "a", 24, 24, 24, 0),
        (1, "b", 8, 8, 8, 0),
        (2, "a", 16, 16, 16, 0),
        (2, "b", 32, 32, 16, 16),
    ]
    assert [row.epochs for row in rows] == [24 / 120, 8 / 24, 16 / 120, 32 / 24]


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(0, 5))
def test_the_ledger_of_any_step_equals_a_recount_of_the_tokens_read(folder, steps):
    plan = _plan(folder)
    cursor, ids = _after(plan, steps)
    places = {"a": Counter(), "b": Counter()}
    for sample_id in ids:
        spans = cursor.locate(sample_id)
        read = [(span.document, span.start + i) for span in spans for i in range(span.length)][:-1]
        places[sample_id[0]].update(read)
    rows = ledger_of(plan, cursor.state_dict())
    for name, counted in places.items():
        mine = [row for row in rows if row.source == name]
        assert sum(row.read for row in mine) == sum(counted.values())
        assert sum(row.first for row in mine) == len(counted)


def test_a_continuation_counts_what_its_parents_read(folder):
    first = _plan(folder, PHASES[:1])
    before, _ = _after(first, 2)
    second = _plan(folder, PHASES[1:], parent=chain_behind(first))
    cursor, _ = _after(second, 3, before.state_dict())
    assert _facts(ledger_of(second, cursor.state_dict())) == [
        (0, "a", 24, 24, 24, 0),
        (0, "b", 8, 8, 8, 0),
        (1, "a", 16, 16, 16, 0),
        (1, "b", 32, 32, 16, 16),
    ]


def test_after_a_moved_cursor_first_and_repeated_are_unknown(folder):
    plan = _plan(folder, [{"a": 4}, {"a": (4, "replay")}])
    cursor, _ = _after(plan, 2)
    assert [row[4:] for row in _facts(ledger_of(plan, cursor.state_dict()))] == [(16, 0), (None, None)]
    behind = _plan(folder, [{"a": 4}], parent=chain_behind(plan))
    after, _ = _after(behind, 1, cursor.state_dict())
    assert [row[4:] for row in _facts(ledger_of(behind, after.state_dict()))] == [(None, None), (None, None)]


def _write_checkpoint(folder, plan, cursor, step):
    path = folder / "checkpoints" / f"step_{step}"
    path.mkdir(parents=True)
    (path / "plan.json").write_text(plan.model_dump_json())
    (path / "state.json").write_text(json.dumps({"cursor": cursor.state_dict()}))
    return path


def test_the_command_prints_a_checkpoint_s_ledger_with_sums(folder, tmp_path, capsys):
    plan = _plan(folder)
    for number, steps in {2: 2, 9: 4, 10: 5}.items():
        _write_checkpoint(tmp_path, plan, _after(plan, steps)[0], number)
    assert main(["ledger", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["2", "b", "general", "32", "32", "1.33", "16", "16"] in lines
    assert ["all", "b", "general", "40", "40", "1.67", "24", "16"] in lines
    assert ["all", "80", "80", "64", "16"] in lines
    assert main(["ledger", str(tmp_path / "checkpoints" / "step_2"), "--json"]) == 0
    assert [row["read"] for row in json.loads(capsys.readouterr().out)] == [24, 8, 0, 0]


def test_what_is_no_checkpoint_has_no_ledger(folder, tmp_path):
    with pytest.raises(DataError, match="no checkpoint; name a stage's folder"):
        read_ledger(tmp_path)
    path = _write_checkpoint(tmp_path, _plan(folder), _after(_plan(folder), 1)[0], 1)
    (path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="missing, damaged or of another version"):
        read_ledger(path)
