"""Packed rows as batches: tokens, labels, weights and boundaries that a pencil can check, in every layout."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.errors import DataError
from data_tools.inspection import open_dataset
from data_tools.manifest import read_manifest, write_manifest
from megatron_ext.datasets.batch import Batch
from megatron_ext.datasets.conversation_ledger import conversation_ledger_of
from megatron_ext.datasets.conversations import (
    PADDING,
    ConversationCursor,
    held_out_conversations,
)
from megatron_ext.datasets.ledger import LedgerRow
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.step_weight import SAMPLE_WEIGHT
from tests.support.pencil_project import PencilProject
from tests.support.sft_project import LONG, SHORT, make_sft_project, write_chat


@pytest.fixture
def project(tmp_path: Path) -> PencilProject:
    return make_sft_project(tmp_path)


def cursor_of(plan: StagePlan, rank: int = 0, size: int = 1) -> ConversationCursor:
    return ConversationCursor(plan, data_parallel_rank=rank, data_parallel_size=size)


def all_steps(cursor: ConversationCursor, plan: StagePlan) -> list[tuple[Batch, ...]]:
    return [cursor.next_step() for _ in range(plan.batch.total_steps)]


def one_source(project: PencilProject, *keys: str) -> StagePlan:
    blend = f"data.blend=[{{source: {project.root}/c.yaml, share: 1.0, max_epochs: 4}}]"
    return project.plan(blend, *keys)


def pieces(batch: Batch) -> list[tuple[list[int], list[int], list[float]]]:
    """Tokens, labels and weights of each segment of a row."""
    assert batch.cu_seqlens is not None
    return [
        tuple(tensor[0, low:high].tolist() for tensor in (batch.tokens, batch.labels, batch.loss_mask))  # type: ignore[misc]
        for low, high in pairwise(batch.cu_seqlens)
    ]


def by_length(batch: Batch) -> list[tuple[list[int], list[int], list[float]]]:
    """The two conversations of a row, the shorter one first, and its padding."""
    *talks, padding = pieces(batch)
    return [*sorted(talks, key=lambda talk: len(talk[0])), padding]


def test_a_row_holds_its_conversations_their_masks_and_padding(project: PencilProject) -> None:
    write_chat(project, "c", [(5, [(2, 4)]), (6, [(1, 2), (4, 6)])])
    plan = one_source(project, "budget.examples=2")
    (batch,) = cursor_of(plan).next_step()
    assert batch.cu_seqlens in ((0, 5, 11, 16), (0, 6, 11, 16))  # as they were drawn
    documents = open_dataset(project.root / "data" / "c").documents
    first, second, padding = by_length(batch)
    ids = [documents[number].tolist() for number in (0, 1)]
    assert [first[0], second[0]] == ids
    assert [first[1], second[1]] == [[*ids[0][1:], 0], [*ids[1][1:], 0]]
    assert first[2] == [0, 1, 1, 0, 0]  # a position counts when its label is marked
    assert second[2] == [1, 0, 0, 1, 1, 0]
    assert padding == ([0] * 5, [0] * 5, [0] * 5)
    assert batch.sample_ids == ("row:0",)


def test_every_conversation_weighs_the_same_with_loss_sample(project: PencilProject) -> None:
    write_chat(project, "c", [(5, [(2, 4)]), (6, [(1, 2), (4, 6)])])
    (batch,) = cursor_of(one_source(project, "budget.examples=2", "sft.loss=sample")).next_step()
    first, second, _ = by_length(batch)
    half, third = SAMPLE_WEIGHT / 2, SAMPLE_WEIGHT / 3
    assert first[2] == [0, half, half, 0, 0]
    assert second[2] == pytest.approx([third, 0, 0, third, third, 0])


@pytest.mark.parametrize("unit", ["rows", "conversations"])
def test_a_split_conversation_weighs_once_with_loss_sample(project: PencilProject, unit: str) -> None:
    """Tokens 10 to 18 of 20 are the assistant's, in pieces of 8: 6 and 2 are trained, the third's first is not."""
    write_chat(project, "c", [(20, [(9, 15), (16, 19)]), (4, [(2, 4)])])
    keys = ("budget.examples=2", "sft.overlong=split", "training.sequence_length=8", "sft.passes=2")
    plan = one_source(project, *keys, "sft.loss=sample", "sft.untrained=skip", f"sft.batch_unit={unit}")
    rows = [batch for step in all_steps(cursor_of(plan), plan) for batch in step]
    weights = [weight for batch in rows for _, _, of_piece in pieces(batch) for weight in of_piece if weight > 0]
    eighth, half = SAMPLE_WEIGHT / 8, SAMPLE_WEIGHT / 2
    assert sorted(weights) == [eighth] * 16 + [half] * 4
    assert sum(weights) == 4 * SAMPLE_WEIGHT, "two conversations, read twice"


def test_texts_without_turns_train_on_all_tokens_but_the_first(project: PencilProject) -> None:
    plan = project.plan()
    texts = [
        weights
        for step in all_steps(cursor_of(plan), plan)
        for batch in step
        for low, high in pairwise(batch.cu_seqlens or ())
        if (batch.source_index[0, low] == 1) and batch.loss_mask[0, low:high].any()
        for weights in [batch.loss_mask[0, low:high].tolist()]
    ]
    assert texts == [[1] * 6 + [0]] * 4


def test_trimmed_thinking_joins_what_is_left_of_a_conversation(project: PencilProject) -> None:
    write_chat(project, "c", [(20, [(4, 20)])], thinking={0: (6, 14)})
    plan = one_source(project, "budget.examples=1", "sft.overlong=trim-thinking", "training.sequence_length=16")
    (batch,) = cursor_of(plan).next_step()
    ids = open_dataset(project.root / "data" / "c").documents[0].tolist()
    assert batch.tokens[0].tolist() == ids[:10] + ids[14:]
    assert batch.loss_mask[0].tolist() == [0] * 3 + [1] * 12 + [0]


def test_pieces_are_padded_one_by_one_inside_their_segment(project: PencilProject) -> None:
    write_chat(project, "c", [(5, [(2, 4)]), (6, [(4, 6)])])
    (batch,) = cursor_of(one_source(project, "budget.examples=2", "sft.pad_multiple=4")).next_step()
    assert batch.cu_seqlens == (0, 8, 16)
    weights = sorted(weights for _, _, weights in pieces(batch))
    assert weights == [[0, 0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("unit", ["rows", "conversations"])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_ranks_share_the_rows_of_a_step_whatever_their_number(project: PencilProject, size: int, unit: str) -> None:
    plan = project.plan(f"sft.batch_unit={unit}", "training.global_batch_size=5")
    alone = all_steps(cursor_of(plan), plan)
    ranks = [all_steps(cursor_of(plan, rank, size), plan) for rank in range(size)]
    for number, step in enumerate(alone):
        shares = [rank[number] for rank in ranks]
        assert len({len(share) for share in shares}) == 1, "all ranks have equally many microbatches"
        rows = [batch for share in shares for batch in share if batch.sample_ids != (PADDING,)]
        assert Counter(batch.sample_ids for batch in rows) == Counter(batch.sample_ids for batch in step)
        assert sum(float(batch.loss_mask.sum()) for share in shares for batch in share) == sum(
            float(batch.loss_mask.sum()) for batch in step
        )


def test_a_row_that_fills_up_trains_on_nothing(project: PencilProject) -> None:
    plan = project.plan("training.global_batch_size=7")
    filled = cursor_of(plan, 7, 8).next_step()
    assert [batch.sample_ids for batch in filled] == [(PADDING,)]
    assert float(filled[0].loss_mask.sum()) == 0
    assert filled[0].cu_seqlens == (0, 16)
    assert cursor_of(plan).pieces_of(PADDING) == []


def test_steps_of_conversations_weigh_so_many_conversations(project: PencilProject) -> None:
    plan = project.plan("sft.batch_unit=conversations", "training.global_batch_size=5", "sft.loss=sample")
    weights = [sum(float(batch.loss_mask.sum()) for batch in step) for step in all_steps(cursor_of(plan), plan)]
    assert weights == pytest.approx([count * SAMPLE_WEIGHT for count in (5, 5, 5, 1)])


def test_reading_goes_on_where_it_was_stopped_in_another_layout(project: PencilProject) -> None:
    plan = project.plan()
    whole = all_steps(cursor_of(plan), plan)
    stopped = cursor_of(plan)
    stopped.next_step()
    resumed = [cursor_of(plan, rank, 2) for rank in range(2)]
    for cursor in resumed:
        cursor.load_state_dict(stopped.state_dict())
    assert [cursor.consumed_samples for cursor in resumed] == [2, 2]
    shares = [cursor.next_step() for cursor in resumed]
    for batch, ((mine,)) in zip(whole[1], shares, strict=True):
        assert mine.sample_ids == batch.sample_ids
        assert torch.equal(mine.tokens, batch.tokens)


def test_the_weighting_switches_behind_so_many_trained_tokens(project: PencilProject) -> None:
    plan = project.plan("sft.loss_switch_tokens=1", "training.global_batch_size=4")
    first, second = all_steps(cursor_of(plan), plan)
    assert {float(weight) for batch in first for weight in batch.loss_mask.unique()} == {0, 1}
    assert sum(float(batch.loss_mask.sum()) for batch in second) == pytest.approx(
        SAMPLE_WEIGHT
        * sum(len(batch.cu_seqlens or ()) - 1 - int((batch.tokens[0, -1] == 0).item()) for batch in second)
    )
    resumed = cursor_of(plan)
    resumed.load_state_dict({"version": 1, "steps_read": 1, "rows": 7, "before": []})
    assert resumed.loss == "sample"


@pytest.mark.parametrize(("more", "loss"), [(0, "sample"), (1, "token")])
def test_a_switch_at_the_very_end_of_a_step_holds_for_the_next_one(
    project: PencilProject, more: int, loss: str
) -> None:
    plan = project.plan("training.global_batch_size=4")
    first, _ = all_steps(cursor_of(plan), plan)
    trained = sum(int(batch.loss_mask.sum()) for batch in first)
    cursor = cursor_of(project.plan("training.global_batch_size=4", f"sft.loss_switch_tokens={trained + more}"))
    cursor.next_step()
    assert cursor.loss == loss


def test_data_that_gives_other_rows_than_planned_is_refused(project: PencilProject) -> None:
    plan = project.plan()
    assert plan.sft is not None
    other = plan.model_copy(update={"sft": plan.sft.model_copy(update={"rows": 8})})
    with pytest.raises(DataError, match="7 rows are packed, 8 were planned; the data was changed since"):
        cursor_of(other)


def test_more_steps_than_planned_are_refused(project: PencilProject) -> None:
    plan = project.plan()
    cursor = cursor_of(plan)
    all_steps(cursor, plan)
    assert (cursor.consumed_samples, cursor.consumed_tokens) == (7, 112)
    with pytest.raises(DataError, match="all 4 steps of the stage have been read"):
        cursor.next_step()


def test_a_place_in_other_rows_is_refused(project: PencilProject) -> None:
    with pytest.raises(DataError, match="rows: the checkpoint has 6, this run 7"):
        cursor_of(project.plan()).load_state_dict({"version": 1, "steps_read": 1, "rows": 6})


def test_a_sample_id_leads_to_the_documents_of_its_row(project: PencilProject) -> None:
    plan = project.plan()
    cursor = cursor_of(plan)
    (batch, _) = cursor.next_step()
    named = cursor.pieces_of(batch.sample_ids[0])
    tokens = cursor.read_sample(batch.sample_ids[0]).tolist()
    expected: list[int] = []
    for source, span in named:
        document = open_dataset(project.root / "data" / source).documents[span.document].tolist()
        expected += document[span.start : span.start + span.length]
    assert tokens == expected
    assert cursor_of(plan).next_sample_ids()[0] == batch.sample_ids[0]


@pytest.mark.parametrize("size", [1, 2])
def test_held_out_rows_are_the_same_in_every_layout(project: PencilProject, size: int) -> None:
    plan = project.plan("sft.loss=sample")
    source = plan.data.sources[0]
    ranks = [
        list(held_out_conversations(plan, source, data_parallel_rank=rank, data_parallel_size=size))
        for rank in range(size)
    ]
    rows = [batch for rank in ranks for batch in rank if batch.sample_ids != (PADDING,)]
    assert sum(float(batch.loss_mask.sum()) for batch in rows) == 2 + 9 + 9
    assert len({len(rank) for rank in ranks}) == 1


def test_an_id_outside_the_vocabulary_names_its_conversation(project: PencilProject) -> None:
    plan = one_source(project)
    small = plan.model_copy(update={"model": plan.model.model_copy(update={"vocab_size": 50})})
    with pytest.raises(DataError, match=r'source "c", document \d+: token id \d+ is outside model.vocab_size 50'):
        all_steps(cursor_of(small), small)


@pytest.mark.parametrize("keys", [(), ("sft.passes=2", "sft.overlong=truncate", "training.sequence_length=10")])
def test_the_ledger_equals_a_recount_of_the_batches(project: PencilProject, keys: tuple[str, ...]) -> None:
    plan = project.plan(*keys, "data.blend[0].max_epochs=2", "data.blend[1].max_epochs=2")
    cursor = cursor_of(plan)
    read, trained, seen = Counter[int](), Counter[int](), Counter[tuple[int, ...]]()
    for step in range(plan.batch.total_steps):
        for batch in cursor.next_step():
            for source, span in cursor.pieces_of(batch.sample_ids[0]):
                read[["c", "d"].index(source)] += span.length
                seen[(["c", "d"].index(source), span.document, span.length)] += 1
            trained.update(batch.source_index[batch.loss_mask > 0].tolist())
        ledger = conversation_ledger_of(plan, cursor)
        assert [row.read for row in ledger[:2]] == [read[0], read[1]]
        assert [row.read - row.masked for row in ledger[:2]] == [trained[0], trained[1]]
        assert sum(row.read for row in ledger) == cursor.consumed_tokens == ledger[2].read + sum(read.values())
        first = [sum(length for at, _, length in seen if at == source) for source in (0, 1)]
        assert [(row.first, row.repeated) for row in ledger[:2]] == [
            (first[0], read[0] - first[0]),
            (first[1], read[1] - first[1]),
        ]
        assert step < plan.batch.total_steps
    assert [row.planned == row.read for row in ledger] == [True] * 3
    assert [row.samples for row in ledger[:2]] == [source.samples for source in plan.data.sources]


@pytest.mark.parametrize("unit", ["rows", "conversations"])
def test_the_ledger_counts_a_conversation_whose_first_piece_is_all_prompt(project: PencilProject, unit: str) -> None:
    write_chat(project, "c", [(12, [(9, 12)]), (4, [(2, 4)])])
    keys = ("budget.examples=2", "sft.overlong=split", "training.sequence_length=8", "sft.untrained=skip")
    plan = one_source(project, *keys, "sft.passes=2", f"sft.batch_unit={unit}")
    cursor = cursor_of(plan)
    all_steps(cursor, plan)
    row = conversation_ledger_of(plan, cursor)[0]
    assert (row.samples, row.documents_first, row.documents_repeated, row.epochs) == (4, 2, 2, 2.0)
    assert row.samples == plan.data.sources[0].samples
    assert row.read == 2 * (4 + 4)


def test_the_ledger_begins_with_what_the_stages_behind_have_read_and_keeps_it(project: PencilProject) -> None:
    plan = project.plan()
    c, _ = plan.data.sources
    before = [LedgerRow(0, name, "", data_id, read=8, distinct=8) for name, data_id in (("a", "0"), ("c", c.data_id))]
    cursor = cursor_of(plan)
    cursor.begin_anew(ledger=[row.to_json() for row in before])
    all_steps(cursor, plan)
    resumed = cursor_of(plan)
    resumed.load_state_dict(cursor.state_dict())
    ledger = conversation_ledger_of(plan, resumed)
    assert ledger[:2] == before
    assert [row.source for row in ledger[2:]] == ["c", "d", PADDING]
    assert (ledger[2].first, ledger[2].repeated, ledger[2].documents_first, ledger[2].distinct) == (None,) * 4
    assert (ledger[3].first, ledger[3].read) == (28, 28)


def test_a_conversation_cut_and_read_twice_is_counted_as_the_ledger_says(project: PencilProject) -> None:
    write_chat(project, "c", [(10, [(3, 6), (7, 10)])])
    plan = one_source(
        project, "budget.examples=1", "sft.passes=2", "sft.overlong=truncate", "training.sequence_length=8"
    )
    cursor = cursor_of(plan)
    cursor.next_step()
    row = conversation_ledger_of(plan, cursor)[0]
    assert (row.read, row.masked, row.truncated, row.documents_cut) == (16, 8, 4, 2)
    assert (row.documents_first, row.documents_repeated, row.pieces_isolated, row.epochs) == (1, 1, 2, 2.0)


def test_trimmed_thinking_is_not_counted_as_a_lost_end(project: PencilProject) -> None:
    write_chat(project, "c", [(20, [(4, 20)])], thinking={0: (6, 14)})
    plan = one_source(project, "budget.examples=1", "sft.overlong=trim-thinking", "training.sequence_length=16")
    cursor = cursor_of(plan)
    cursor.next_step()
    row = conversation_ledger_of(plan, cursor)[0]
    assert (row.read, row.trimmed, row.truncated, row.documents_cut) == (16, 4, 0, 1)


def test_conversations_left_out_and_split_are_counted_with_the_last_row(project: PencilProject) -> None:
    write_chat(project, "c", [SHORT] * 11 + [(20, [(1, 20)])])
    for overlong, counted in {"drop": (20, 1, 0), "split": (0, 0, 1)}.items():
        plan = one_source(project, "budget.examples=12", f"sft.overlong={overlong}", "training.global_batch_size=1")
        cursor = cursor_of(plan)
        cursor.next_step()
        of_steps = [conversation_ledger_of(plan, cursor)[0]]
        while cursor.steps_read < plan.batch.total_steps:
            cursor.next_step()
        of_steps.append(conversation_ledger_of(plan, cursor)[0])
        assert [(row.dropped, row.documents_dropped, row.documents_cut) for row in of_steps] == [(0, 0, 0), counted]


def test_the_ledger_says_how_the_domains_of_conversations_are_known(project: PencilProject) -> None:
    prefix = project.plan().data.sources[0].prefix
    manifest = read_manifest(prefix)
    write_manifest(prefix, replace(manifest, tokens_by_domain={"code": manifest.tokens}))
    plan = project.plan()
    rows = conversation_ledger_of(plan, cursor_of(plan))
    assert [row.domain_shares for row in rows[:2]] == [{"code": 1.0}, {}]
    assert [row.domains_known for row in rows[:2]] == ["counted over the whole source", "declared"]


def test_rows_do_not_depend_on_names_or_places(project: PencilProject, tmp_path: Path) -> None:
    other = make_sft_project(tmp_path / "elsewhere")
    other.edit("c.yaml", "source: c", "source: renamed")
    plans = [one.plan() for one in (project, other)]
    assert plans[0].stage_id == plans[1].stage_id
    first, second = (cursor_of(plan).next_step() for plan in plans)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True))


def test_the_data_of_two_shapes_of_conversation_are_all_read_once(project: PencilProject) -> None:
    plan = one_source(project, "budget.examples=12")
    lengths: Counter[int] = Counter()
    cursor = cursor_of(plan)
    for ids in iter(lambda: cursor.next_sample_ids() if cursor.steps_read < plan.batch.total_steps else [], []):
        lengths.update(span.length for sample in ids for _, span in cursor.pieces_of(sample))
    assert lengths == {SHORT[0]: 8, LONG[0]: 4}
    assert np.isclose(plan.data.sources[0].epochs, 1.0)
