"""Blends of packed sources: the same batches in every layout and behind every resume; the ledger equals a recount."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.datasets.ledger import LedgerRow, ledger_json, ledger_of, sum_by_source
from megatron_ext.datasets.ledger_view import print_ledger
from megatron_ext.plan.lineage import chain_behind
from megatron_ext.plan.stage_plan import StagePlan
from tests.support.packed_sources import PADDING, Packed, write_packed_source
from tests.support.sources import plan_reading

LENGTHS = {"a": [3, 9, 1, 2, 4, 5, 2, 1, 6, 3, 3, 2], "b": [2, 7, 3, 1, 2]}
POLICIES = ["split", "truncate", "trim-thinking", "drop"]
BEGINS = {name: [0, *accumulate(lengths)] for name, lengths in LENGTHS.items()}
DOCUMENT_OF = {
    name: {token: d for d, (start, end) in enumerate(pairwise(begins)) for token in range(start, end)}
    for name, begins in BEGINS.items()
}
SPLIT = [{"a": 4, "b": 8}, {"a": 8, "b": (8, "replay")}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources a and b, whose tokens name their place, in blocks of 4 documents, rows of 4 positions."""
    folder = tmp_path_factory.mktemp("packed")
    for name, lengths in LENGTHS.items():
        write_packed_source(folder / name, Packed(lengths))
    return folder


def _plan(folder: Path, phases=SPLIT, *, policy="split", parent=None, **changes) -> StagePlan:
    totals = Counter()
    for phase in phases:
        totals.update({name: value[0] if isinstance(value, tuple) else value for name, value in phase.items()})
    data = {"packing": "best_fit", "long_documents": policy, "store": str(folder), "eod_id": PADDING}
    return plan_reading(
        {name: (folder / name, totals[name]) for name in "ab"},
        global_batch_size=4,
        phases=phases,
        data=data | {"document_isolation": "full"},
        model={"vocab_size": 10_000},
        parent=parent,
        **changes,
    )


def _cursor(plan: StagePlan, *, rank: int = 0, size: int = 1) -> BlendedCursor:
    return BlendedCursor(plan, data_parallel_rank=rank, data_parallel_size=size)


def _rows(ranks) -> list[tuple]:
    """(id, tokens, labels, loss mask) of the rows of one global batch, put together from all ranks."""
    return [
        (batch.sample_ids[i], batch.tokens[i].tolist(), batch.labels[i].tolist(), batch.loss_mask[i].tolist())
        for microbatch in zip(*ranks, strict=True)
        for batch in microbatch
        for i in range(len(batch.sample_ids))
    ]


def _global_batches(plan: StagePlan, *, size: int = 1) -> list[list[tuple]]:
    cursors = [_cursor(plan, rank=rank, size=size) for rank in range(size)]
    return [_rows([cursor.next_step() for cursor in cursors]) for _ in range(plan.batch.total_steps)]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_layout_sees_the_same_packed_batches(folder, policy):
    alone = _global_batches(_plan(folder, policy=policy))
    assert _global_batches(_plan(folder, policy=policy), size=2) == alone
    assert _global_batches(_plan(folder, policy=policy), size=4) == alone
    assert _global_batches(_plan(folder, policy=policy, micro_batch_size=2), size=2) == alone


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_packed_batches_resumed_at_any_step_in_any_layout_are_the_same(folder, data):
    plan = _plan(folder, policy=data.draw(st.sampled_from(POLICIES)))
    whole = _global_batches(plan)
    step = data.draw(st.integers(0, plan.batch.total_steps))
    before, after = (data.draw(st.sampled_from([1, 2, 4])) for _ in range(2))
    stopped = _cursor(plan, rank=before - 1, size=before)
    for _ in range(step):
        stopped.next_step()
    resumed = [_cursor(plan, rank=rank, size=after) for rank in range(after)]
    for cursor in resumed:
        cursor.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert [_rows([cursor.next_step() for cursor in resumed]) for _ in range(step, len(whole))] == whole[step:]


def test_the_loss_is_of_labels_of_the_same_document_alone_and_documents_are_kept_apart(folder):
    for (batch,) in (_cursor(_plan(folder, micro_batch_size=4)).next_step() for _ in range(7)):
        begins = {0, *batch.cu_seqlens}
        for place, (token, label, weight) in enumerate(
            zip(
                batch.tokens.flatten().tolist(), batch.labels.flatten().tolist(), batch.loss_mask.flatten(), strict=True
            )
        ):
            document_of = DOCUMENT_OF["ab"[int(batch.source_index[place // 4])]]
            is_one = token != PADDING and label != PADDING and document_of[token] == document_of[label]
            assert bool(weight) == is_one
            if place % 4 and document_of.get(token) != document_of.get(int(batch.tokens.flatten()[place - 1])):
                assert place in begins
        assert len(begins) == len(set(begins))


class _Recount:
    """Counts by reading batches back; a source's tokens say which document they are of."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.kept = {
            name: [Packed(lengths, long_documents=policy).kept(length) for length in lengths]
            for name, lengths in LENGTHS.items()
        }
        self.tokens, self.documents = defaultdict(set), defaultdict(set)

    def read(self, cursor: BlendedCursor, batch) -> dict[str, Counter]:
        """The fields of the ledger's rows, by source, of one batch."""
        counts = defaultdict(Counter)
        for row, sample_id in enumerate(batch.sample_ids):
            name = sample_id.split(":")[0]
            count = counts[name]
            tokens = [token for token in batch.tokens[row].tolist() if token != PADDING]
            count["samples"] += 1
            count["read"] += 4
            count["padding"] += 4 - len(tokens)
            count["masked"] += len(tokens) - int(batch.loss_mask[row].sum())
            for token in tokens:
                count["repeated" if token in self.tokens[name] else "first"] += 1
                self.tokens[name].add(token)
            for document in dict.fromkeys(DOCUMENT_OF[name][token] for token in tokens):
                self._count_piece(name, document, tokens, count)
            self._count_dropped(cursor, sample_id, count)
        return counts

    def has_left_tokens_unread(self, name: str) -> bool:
        """Whether a part of a source was read, and another one not."""
        return 0 < len(self.tokens[name]) < sum(self.kept[name])

    def _count_dropped(self, cursor: BlendedCursor, sample_id: str, count: Counter) -> None:
        """Behind the last row of a window of 4 documents, those of them that have no row."""
        name, epoch, row = sample_id.split(":")
        window = cursor.locate(sample_id)[0].document // 4
        if int(row) + 1 < _rows_of_pass(cursor, name):
            (following, *_) = cursor.locate(f"{name}:{epoch}:{int(row) + 1}")
            if following.document // 4 == window:
                return
        lengths, kept = (of[name][4 * window : 4 * window + 4] for of in (LENGTHS, self.kept))
        gone = [length for length, read in zip(lengths, kept, strict=True) if not read]
        count["documents_dropped"] += len(gone)
        count["dropped"] += sum(gone)

    def _count_piece(self, name: str, document: int, tokens: list[int], count: Counter) -> None:
        of_it = sum(DOCUMENT_OF[name][token] == document for token in tokens)
        count["pieces_isolated"] += 1
        if BEGINS[name][document] in tokens:
            count["documents_repeated" if document in self.documents[name] else "documents_first"] += 1
            self.documents[name].add(document)
        if self.policy != "split" and (missing := LENGTHS[name][document] - of_it):
            count["trimmed" if self.policy == "trim-thinking" else "truncated"] += missing
            count["documents_cut"] += 1


def _rows_of_pass(cursor: BlendedCursor, name: str) -> int:
    packed = cursor.packed_cursor(name)
    assert packed is not None
    return packed.rows_of_pass


FIELDS = ["samples", "read", "padding", "masked", "pieces_isolated", "truncated", "trimmed", "documents_cut"]
FIELDS += ["dropped", "documents_dropped"]
WHERE_KNOWN = ["first", "repeated", "documents_first", "documents_repeated"]


@settings(max_examples=25, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    stages=st.lists(
        st.lists(
            st.tuples(st.integers(1, 6), st.sampled_from(["continue", "fresh", "replay"])), min_size=1, max_size=3
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_the_packed_ledger_of_every_step_of_a_chain_equals_a_recount(folder, policy, stages):
    recount, parent, behind = _Recount(policy), None, None
    unknown = set()
    for phases in stages:
        given_phases = [{"a": 4, "b": (4 * rows, move)} for rows, move in phases]
        plan = _plan(folder, given_phases, policy=policy, parent=behind)
        cursor = _cursor(plan)
        if parent is not None:
            ledger = [row.to_json() for row in sum_by_source(ledger_of(*parent))]
            cursor.take_over(json.loads(json.dumps(parent[1].state_dict())), ledger=ledger)
        for number, phase in enumerate(given_phases, 1):
            counts = defaultdict(Counter)
            if phase["b"][1] == "fresh" and recount.has_left_tokens_unread("b"):
                unknown.add("b")
            for _ in range((phase["a"] + phase["b"][0]) // 4):
                for batch in cursor.next_step():
                    for name, more in recount.read(cursor, batch).items():
                        counts[name].update(more)
                rows = {row.source: row for row in ledger_of(plan, cursor) if row.phase == number}
                for name, counted in counts.items():
                    row = rows[name]
                    assert {field: getattr(row, field) for field in FIELDS} == {f: counted[f] for f in FIELDS}
                    assert row.epochs == counted["samples"] / _rows_of_pass(cursor, name)
                    exact = counted | {
                        "distinct": len(recount.tokens[name]),
                        "distinct_documents": len(recount.documents[name]),
                    }
                    for field in [*WHERE_KNOWN, "distinct", "distinct_documents"]:
                        assert getattr(row, field) == (None if name in unknown else exact.get(field, 0)), field
        parent, behind = (plan, cursor), chain_behind(plan)


def test_what_four_passes_leave_out_is_four_times_the_documents_that_are_too_long(folder):
    """Rows of a pass, by blocks of documents: of a 2 + 2 + 3, without 9, 5 and 6 tokens; of b 2 + 1, without 7."""
    plan = _plan(folder, [{"a": 28, "b": 12}], policy="drop")
    cursor = _cursor(plan)
    for _ in range(10):
        cursor.next_step()
    assert [(row.epochs, row.documents_dropped, row.dropped) for row in ledger_of(plan, cursor)] == [
        (4, 12, 80),
        (4, 4, 28),
    ]


def test_a_pass_whose_tokens_are_all_kept_leaves_nothing_unread_under_split(folder):
    plan = _plan(folder, [{"a": 24, "b": 4}])
    cursor = _cursor(plan)
    for _ in range(7):
        cursor.next_step()
    (a, _) = ledger_of(plan, cursor)
    assert a.distinct == sum(LENGTHS["a"]) == 41
    assert (a.truncated, a.trimmed, a.dropped, a.documents_cut, a.documents_dropped) == (0, 0, 0, 0, 0)
    assert a.read == a.padding + a.first + a.repeated


def test_a_resumed_packed_run_has_the_ledger_of_one_that_was_not_stopped(folder):
    plan = _plan(folder, policy="truncate")
    whole, stopped, resumed = (_cursor(plan) for _ in range(3))
    for _ in range(7):
        whole.next_step()
    for _ in range(3):
        stopped.next_step()
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for _ in range(4):
        resumed.next_step()
    assert ledger_json(ledger_of(plan, resumed)) == ledger_json(ledger_of(plan, whole))


def test_behind_a_pass_that_fresh_left_packed_firsts_are_unknown(folder):
    plan = _plan(folder, [{"a": 4, "b": 4}, {"a": (4, "fresh"), "b": 4}])
    cursor = _cursor(plan)
    for _ in range(4):
        cursor.next_step()
    (_, _, a, b) = ledger_of(plan, cursor)
    assert (a.first, a.repeated, a.documents_first, a.distinct) == (None, None, None, None)
    assert b.first is not None


def test_the_ledger_is_printed_with_its_fill_and_what_was_cut(tmp_path, capsys):
    row = LedgerRow(1, "a", "general", "0" * 64, read=100, samples=25, padding=10, truncated=7, documents_cut=2)
    (tmp_path / "state.json").touch()
    print_ledger([row], tmp_path)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "packed: 90.00 % filled, 10 positions of padding; 2 long documents cut, 7 tokens of them; 0 dropped, 0 tokens"
    )


@pytest.mark.parametrize(("policy", "is_said"), [("drop", True), ("trim-thinking", True), ("split", False)])
def test_a_ledger_whose_documents_may_be_dropped_says_when_they_count(tmp_path, capsys, policy, is_said):
    (tmp_path / "state.json").touch()
    print_ledger([LedgerRow(1, "a", "general", "0" * 64, read=100, samples=25, long_documents=policy)], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("; 0 dropped, 0 tokens") for line in lines)
    assert ("dropped documents count when the last row of their window is read" in "\n".join(lines)) == is_said
