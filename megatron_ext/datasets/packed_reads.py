"""What a phase has read of a source whose documents are packed, for the ledger; other sources: `ledger.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_ext.plan.stage_plan import StagePlan

if TYPE_CHECKING:
    from megatron_ext.datasets.packed_cursor import PackedCursor


def packed_reads(
    plan: StagePlan,
    cursor: PackedCursor,
    *,
    begin: int,
    samples: int,
    distinct: int | None,
    documents: int | None,
    place: int,
) -> dict[str, Any]:
    """The fields of a ledger row that has read rows from `begin` on.

    Args:
        plan: The stage.
        cursor: Of the source; it is not moved.
        begin: Place of the source's reading order where the phase began, in positions.
        samples: Rows read since then.
        distinct: Tokens of the source that earlier rows have read; None where that is not known.
        documents: Documents that they have begun, likewise.
        place: Where they have ended.
    """
    length = plan.batch.sequence_length
    end = begin + samples * length
    here, there = cursor.counts_before(end), cursor.counts_before(begin)
    read = here.all_passes.minus(there.all_passes)
    of_pass = cursor.counts_before(cursor.rows_of_pass * length).first_pass
    known = new = first = documents_first = None
    # Where `fresh` left a part of the first pass, the next one meets some of it for the first time.
    if distinct is not None and documents is not None and not (begin > place and distinct < of_pass.tokens):
        known, new = max(distinct, here.first_pass.tokens), max(documents, here.first_pass.documents)
        first, documents_first = known - distinct, new - documents
    is_trimmed = cursor.long_documents == "trim-thinking"
    return {
        "read": samples * length,
        "samples": samples,
        "epochs": samples / cursor.rows_of_pass,
        "padding": samples * length - read.tokens,
        "first": first,
        "repeated": None if first is None else read.tokens - first,
        "documents_first": documents_first,
        "documents_repeated": None if documents_first is None else read.documents - documents_first,
        "masked": read.unlabelled,
        "truncated": 0 if is_trimmed else read.cut_tokens,
        "trimmed": read.cut_tokens if is_trimmed else 0,
        "documents_cut": read.cut,
        "dropped": read.dropped_tokens,
        "documents_dropped": read.dropped,
        "pieces_isolated": read.pieces if plan.data.document_isolation != "none" else 0,
        "long_documents": cursor.long_documents,
        "distinct": known,
        "distinct_documents": new,
        "place": end,
    }
