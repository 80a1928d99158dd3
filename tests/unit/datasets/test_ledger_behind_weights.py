"""Behind `init_from` the ledger counts as a recount does, or says that it cannot know; packed or unpacked."""

from __future__ import annotations

import json
from collections import Counter
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.datasets.ledger import ledger_of, sum_anew, sum_by_source
from megatron_ext.plan.lineage import chain_behind
from megatron_ext.plan.stage_plan import StagePlan
from tests.support.packed_sources import PADDING, Packed, write_packed_source
from tests.support.sources import plan_reading

LENGTHS = [3, 9, 1, 0, 2, 4, 1, 2, 6]
TOKENS, DOCUMENTS = 28, 8  # that hold one
ROWS = {"none": 7, "best_fit": 9}  # of 4 positions, of one pass
BEGINS = {start for start, end in pairwise([0, *accumulate(LENGTHS)]) if end > start}
COUNTED = ("first", "repeated", "documents_first", "documents_repeated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source a, whose token t is the number t, in blocks of 4 documents."""
    folder = tmp_path_factory.mktemp("weights")
    write_packed_source(folder / "a", Packed(LENGTHS))
    return folder


def _plan(folder: Path, phases: list[tuple[int, str]], *, packing: str, **behind) -> StagePlan:
    return plan_reading(
        {"a": (folder / "a", sum(rows for rows, _ in phases))},
        global_batch_size=1,
        phases=[{"a": phase} for phase in phases],
        data={"packing": packing, "store": str(folder), "eod_id": PADDING},
        model={"vocab_size": 10_000},
        **behind,
    )


def _begin(folder: Path, phases, *, packing: str, giver=None, continued=None) -> tuple[StagePlan, BlendedCursor]:
    """A stage at its beginning: with the weights of a finished one, behind it, or behind nothing."""
    behind = {}
    if giver is not None:
        behind["init_from"] = chain_behind(giver[0], gives="weights")
    if continued is not None:
        behind["parent"] = chain_behind(continued[0])
    plan = _plan(folder, phases, packing=packing, **behind)
    cursor = BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1)
    if giver is not None:
        cursor.begin_anew(ledger=[row.to_json() for row in sum_anew(ledger_of(*giver), plan)])
    if continued is not None:
        state = json.loads(json.dumps(continued[1].state_dict()))
        cursor.take_over(state, ledger=[row.to_json() for row in sum_by_source(ledger_of(*continued))])
    return plan, cursor


def _read(stage: tuple[StagePlan, BlendedCursor]) -> list[int]:
    """The tokens of the next row, without padding."""
    (batch,) = stage[1].next_step()
    return [token for token in batch.tokens.flatten().tolist() if token != PADDING]


@pytest.mark.parametrize("packing", ["none", "best_fit"])
@pytest.mark.parametrize("packing_before", ["none", "best_fit"])
def test_what_the_giver_read_whole_is_read_again(folder, packing_before, packing):
    giver = _begin(folder, [(ROWS[packing_before], "continue")], packing=packing_before)
    for _ in range(ROWS[packing_before]):
        _read(giver)
    stage = _begin(folder, [(ROWS[packing], "continue")], packing=packing, giver=giver)
    for _ in range(ROWS[packing]):
        _read(stage)
    before, row = ledger_of(*stage)
    assert (before.first, before.documents_first) == (TOKENS, DOCUMENTS)
    assert [getattr(row, field) for field in COUNTED] == [0, TOKENS, 0, DOCUMENTS]
    assert (row.distinct, row.distinct_documents) == (TOKENS, DOCUMENTS)


@pytest.mark.parametrize("packing", ["none", "best_fit"])
@pytest.mark.parametrize("packing_before", ["none", "best_fit"])
def test_what_the_giver_read_in_part_makes_firsts_unknown_in_tokens_and_documents(folder, packing_before, packing):
    giver = _begin(folder, [(3, "continue")], packing=packing_before)
    for _ in range(3):
        _read(giver)
    stage = _begin(folder, [(2, "continue")], packing=packing, giver=giver)
    _read(stage)
    row = ledger_of(*stage)[1]
    assert {getattr(row, field) for field in (*COUNTED, "distinct", "distinct_documents")} == {None}


phases = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from(["continue", "fresh", "replay"])), min_size=1, max_size=2
)


@settings(max_examples=40, deadline=None)
@given(
    stages=st.lists(
        st.tuples(phases, st.sampled_from(["none", "best_fit"]), st.sampled_from(["continue", "init_from"])),
        min_size=2,
        max_size=4,
    )
)
def test_every_number_of_the_ledger_of_a_chain_with_givers_equals_a_recount(folder, stages):
    tokens, stage = set(), None
    for given_phases, packing, link in stages:
        if stage is None:
            stage = _begin(folder, given_phases, packing=packing)
        elif link == "continue":  # a chain keeps its packing
            stage = _begin(folder, given_phases, packing=stage[0].data.packing, continued=stage)
        else:
            stage = _begin(folder, given_phases, packing=packing, giver=stage)
        for number, (rows, _) in enumerate(given_phases, 1):
            counts = Counter()
            for _ in range(rows):
                for token in _read(stage):
                    kind = "repeated" if token in tokens else "first"
                    counts[kind] += 1
                    counts[f"documents_{kind}"] += token in BEGINS
                    tokens.add(token)
                (row,) = (row for row in ledger_of(*stage) if row.phase == number)
                said = {field: getattr(row, field) for field in COUNTED}
                assert set(said.values()) == {None} or said == {field: counts[field] for field in COUNTED}
                assert row.distinct in (None, len(tokens))
                assert row.distinct_documents in (None, len(tokens & BEGINS))
