"""The ledger counts what was read as a recount by reading the data back does, in every phase and over the chain."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from data_tools.schema import SourceRecipe
from megatron_ext.__main__ import main
from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.datasets.ledger import ledger_json, ledger_of, read_ledger, sum_by_source
from megatron_ext.plan.domains import domains_of
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
    """The cursor after some steps, and what they read; a parent is a plan and its cursor."""
    cursor = BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1)
    if parent is not None:
        ledger = [row.to_json() for row in sum_by_source(ledger_of(*parent))]
        cursor.take_over(json.loads(json.dumps(parent[1].state_dict())), ledger=ledger)
    ids = [name for _ in range(steps) for batch in cursor.next_step() for name in batch.sample_ids]
    return cursor, ids


def _facts(rows):
    return [(row.phase, row.source, row.planned, row.read, row.first, row.repeated) for row in rows]


def test_a_finished_stage_has_read_what_was_planned_and_says_what_was_repeated(folder):
    plan = _plan(folder)
    cursor, _ = _after(plan, 5)
    rows = ledger_of(plan, cursor)
    assert _facts(rows) == [
        (1, "a", 24, 24, 24, 0),
        (1, "b", 8, 8, 8, 0),
        (2, "a", 16, 16, 16, 0),
        (2, "b", 32, 32, 16, 16),
    ]
    assert [row.epochs for row in rows] == [24 / 120, 8 / 24, 16 / 120, 32 / 24]


class _Recount:
    """Counts by reading back: every token and document of every sample."""

    def __init__(self):
        self.tokens, self.documents = defaultdict(set), defaultdict(set)

    def read(self, cursor, ids):
        """first, repeated, documents first and again, and pieces, by source, of some samples."""
        counts = defaultdict(Counter)
        for sample_id in ids:
            name, left = sample_id[0], 4
            for span in cursor.locate(sample_id):
                for offset in range(span.start, span.start + min(left, span.length)):
                    is_new = (span.document, offset) not in self.tokens[name]
                    counts[name]["first" if is_new else "repeated"] += 1
                    self.tokens[name].add((span.document, offset))
                    if offset == 0:
                        is_begun = span.document in self.documents[name]
                        counts[name]["documents_repeated" if is_begun else "documents_first"] += 1
                        self.documents[name].add(span.document)
                counts[name]["pieces_isolated"] += left > 0
                left -= min(left, span.length)
        return counts


FIELDS = ("first", "repeated", "documents_first", "documents_repeated", "pieces_isolated")


@settings(max_examples=25, deadline=None)
@given(
    stages=st.lists(
        st.lists(
            st.tuples(st.integers(1, 12), st.sampled_from(["continue", "fresh", "replay"])), min_size=1, max_size=3
        ),
        min_size=1,
        max_size=3,
    )
)
def test_the_ledger_of_every_step_of_a_chain_equals_a_recount(folder, stages):
    recount, parent, behind = _Recount(), None, None
    unknown = set()
    for phases in stages:
        given_phases = [{"a": 4, "b": (4 * rows, move)} for rows, move in phases]
        plan = _plan(folder, given_phases, parent=behind, data={"document_isolation": "full"})
        cursor, _ = _after(plan, 0, parent)
        for number, phase in enumerate(given_phases, 1):
            counts = defaultdict(Counter)
            if phase["b"][1] == "fresh" and 0 < len(recount.tokens["b"]) < 24:  # a part of the first pass is left
                unknown.add("b")
            for _ in range((phase["a"] + phase["b"][0]) // 4):
                ids = [name for batch in cursor.next_step() for name in batch.sample_ids]
                for name, more in recount.read(cursor, ids).items():
                    counts[name].update(more)
                rows = {row.source: row for row in ledger_of(plan, cursor) if row.phase == number}
                for name, counted in counts.items():
                    row = rows[name]
                    known = FIELDS[-1:] if name in unknown else FIELDS
                    assert {field: getattr(row, field) for field in known} == {f: counted[f] for f in known}
                    assert row.read == 4 * row.samples == counted["first"] + counted["repeated"]
                    assert row.distinct == (None if name in unknown else len(recount.tokens[name]))
        parent, behind = (plan, cursor), chain_behind(plan)


def test_pretraining_masks_and_truncates_nothing_and_isolates_only_where_it_is_asked(folder):
    plan = _plan(folder)
    for row in ledger_of(plan, _after(plan, 5)[0]):
        assert (row.masked, row.truncated, row.pieces_isolated) == (0, 0, 0)


def test_a_resumed_run_has_the_ledger_of_one_that_was_not_stopped(folder):
    plan = _plan(folder, [{"a": 6, "b": 2}, {"a": 4, "b": (8, "replay")}])
    whole, _ = _after(plan, 5)
    stopped, _ = _after(plan, 3)
    resumed, _ = _after(plan, 0)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for _ in range(2):
        resumed.next_step()
    assert ledger_json(ledger_of(plan, resumed)) == ledger_json(ledger_of(plan, whole))


def test_a_continuation_counts_what_its_parents_read(folder):
    first = _plan(folder, PHASES[:1])
    before, _ = _after(first, 2)
    second = _plan(folder, PHASES[1:], parent=chain_behind(first))
    cursor, _ = _after(second, 3, (first, before))
    assert _facts(ledger_of(second, cursor)) == [
        (0, "a", 24, 24, 24, 0),
        (0, "b", 8, 8, 8, 0),
        (1, "a", 16, 16, 16, 0),
        (1, "b", 32, 32, 16, 16),
    ]


def test_a_source_that_a_stage_leaves_out_stays_in_the_ledger(folder):
    first = _plan(folder, [{"a": 4, "b": 4}])
    before, _ = _after(first, 2)
    second = _plan(folder, [{"a": 4}], parent=chain_behind(first))
    after, _ = _after(second, 1, (first, before))
    third = _plan(folder, [{"b": 4}], parent=chain_behind(second))
    cursor, _ = _after(third, 1, (second, after))
    assert _facts(ledger_of(third, cursor)) == [
        (0, "a", 32, 32, 32, 0),
        (0, "b", 16, 16, 16, 0),
        (1, "b", 16, 16, 8, 8),
    ]


def test_behind_a_pass_that_fresh_left_first_and_repeated_are_unknown(folder):
    plan = _plan(folder, [{"a": 4}, {"a": (4, "fresh")}])
    cursor, _ = _after(plan, 2)
    assert [row[4:] for row in _facts(ledger_of(plan, cursor))] == [(16, 0), (None, None)]
    behind = _plan(folder, [{"a": 4}], parent=chain_behind(plan))
    after, _ = _after(behind, 1, (plan, cursor))
    assert [row[4:] for row in _facts(ledger_of(behind, after))] == [(None, None), (None, None)]


def test_fresh_behind_a_whole_pass_repeats_all(folder):
    plan = _plan(folder, [{"b": 8}, {"b": (4, "fresh")}])  # one pass of 6 samples and a third of the next
    assert [row[4:] for row in _facts(ledger_of(plan, _after(plan, 3)[0]))] == [(24, 8), (0, 16)]


def _write_checkpoint(folder, plan, cursor, step):
    path = folder / "checkpoints" / f"step_{step}"
    path.mkdir(parents=True)
    (path / "plan.json").write_text(plan.model_dump_json())
    (path / "state.json").write_text(json.dumps({"cursor": cursor.state_dict()}))
    (path / "ledger.json").write_text(ledger_json(ledger_of(plan, cursor)))
    return path


def test_the_command_prints_a_checkpoint_s_ledger_with_sums(folder, tmp_path, capsys):
    plan = _plan(folder)
    for number, steps in {2: 2, 9: 4, 10: 5}.items():
        _write_checkpoint(tmp_path, plan, _after(plan, steps)[0], number)
    assert main(["ledger", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["2", "b", "general", "32", "32", "32", "1.33", "16", "16", "4", "6"] in lines
    assert ["all", "b", "general", "40", "40", "40", "1.67", "24", "16", "8", "6"] in lines
    assert ["all", "everything", "80", "80", "80", "64", "16", "21", "6"] in lines
    assert main(["ledger", str(tmp_path / "checkpoints" / "step_2"), "--json"]) == 0
    assert [row["read"] for row in json.loads(capsys.readouterr().out)] == [24, 8, 0, 0]


@pytest.mark.parametrize("known", ["counted over the whole source", "declared"])
def test_a_source_that_mixes_domains_is_split_by_its_shares_and_says_how_they_are_known(
    folder, tmp_path, capsys, known
):
    plan = _plan(folder)
    shares = {"math": 0.75, "code": 0.25}
    a, b = plan.data.sources
    b = b.model_copy(update={"domain_shares": tuple(shares.items()), "domains_known": known})
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"sources": (a, b)})})
    _write_checkpoint(tmp_path, plan, _after(plan, 5)[0], 5)
    assert main(["ledger", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    said = f"({known})".split()
    assert ["all", "math", *said, "30", "30", "30", "18", "12", "unknown", "unknown"] in lines  # of 8 and 32 tokens
    assert ["all", "code", *said, "10", "10", "10", "6", "4", "unknown", "unknown"] in lines
    assert ["all", "general", "40", "40", "40", "40", "0", "13", "0"] in lines
    assert (read_ledger(tmp_path)[1].domain_shares, read_ledger(tmp_path)[1].domains_known) == (shares, known)


def test_counted_shares_give_the_tokens_of_each_domain_of_whole_passes(folder, tmp_path, capsys):
    plan = _plan(folder, [{"b": 12}])  # 48 tokens, two passes
    source = domains_of(SourceRecipe(source="b", prefix="b", validation_prefix="b"), {"code": 7, "math": 17})
    (b,) = plan.data.sources
    data = plan.data.model_copy(update={"sources": (b.model_copy(update=source._asdict()),)})
    plan = plan.model_copy(update={"data": data})
    _write_checkpoint(tmp_path, plan, _after(plan, 3)[0], 3)
    assert main(["ledger", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    counted = ["(counted", "over", "the", "whole", "source)"]
    assert ["all", "code", *counted, "14", "14", "14", "7", "7", "unknown", "unknown"] in lines
    assert ["all", "math", *counted, "34", "34", "34", "17", "17", "unknown", "unknown"] in lines


def test_a_ledger_of_before_domains_were_counted_is_read_as_declared(folder, tmp_path):
    path = _write_checkpoint(tmp_path, _plan(folder), _after(_plan(folder), 1)[0], 1)
    rows = json.loads((path / "ledger.json").read_text())
    assert [row.pop("domains_known") for row in rows] == ["declared"] * 4
    (path / "ledger.json").write_text(json.dumps(rows))
    assert [row.domains_known for row in read_ledger(path)] == ["declared"] * 4


def test_of_a_stage_without_a_checkpoint_nothing_has_been_saved_yet(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(DataError, match="nothing has been saved yet, so nothing is known to be read; wait for the"):
        read_ledger(tmp_path)


@pytest.mark.parametrize(("flags", "begins"), [((), "wrote chart.png\n"), (("--json",), "[\n")])
def test_a_chart_says_where_it_was_written_beside_the_rows(folder, tmp_path, capsys, monkeypatch, flags, begins):
    _write_checkpoint(tmp_path, _plan(folder), _after(_plan(folder), 1)[0], 1)
    monkeypatch.chdir(tmp_path)
    assert main(["ledger", ".", "--png", "chart.png", *flags]) == 0
    written = capsys.readouterr()
    assert written.out.startswith(begins)
    assert "wrote chart.png\n" in written.out + written.err
    assert Path("chart.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_checkpoint_has_no_ledger(folder, tmp_path):
    with pytest.raises(DataError, match="no checkpoint; name a stage's folder"):
        read_ledger(tmp_path)
    path = _write_checkpoint(tmp_path, _plan(folder), _after(_plan(folder), 1)[0], 1)
    (path / "ledger.json").write_text('[{"phase": 1}]')
    with pytest.raises(DataError, match="missing, damaged or of another version"):
        read_ledger(path)
