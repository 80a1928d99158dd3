"""What an sft stage has read of each source; the rows are those of `ledger.py`, with conversations as samples.

`read` counts tokens in rows, `masked` those of them that carry no loss: read - masked were trained on. Of text
without turns only each piece's first token is masked. `truncated` are tokens cut off conversations, `trimmed` those cut
out of their thinking. What is left out of all rows, and what is split, counts when the last row is read. A row
`padding` holds the positions that have no token, as read and as padding: all `read` sum to the processed tokens.

Worked example: of a conversation of 10 tokens, 6 of them the assistant's, a row of 8 that truncates it and is read
twice has read 16, masked 8, truncated 4 and documents_cut 2; documents_first 1 and documents_repeated 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data_tools.pack_rows import Rows
from megatron_ext.datasets.conversations import ConversationCursor
from megatron_ext.datasets.ledger import PADDING, LedgerRow
from megatron_ext.plan.stage_plan import StagePlan


def conversation_ledger_of(plan: StagePlan, cursor: ConversationCursor) -> list[LedgerRow]:
    """What has been read up to where a cursor stands, behind what the stages that gave the weights have read.

    Args:
        plan: The stage, of kind sft.
        cursor: Of the stage.
    """
    rows, end = cursor.rows, int(cursor.rows.first_piece[cursor.rows_read])
    lengths, is_begin, is_first = rows.pieces.lengths, rows.is_begin, rows.is_first
    is_read = np.arange(len(lengths)) < end
    before = [LedgerRow(**row) for row in cursor.before]
    ledger = []
    for index, source in enumerate(plan.data.sources):
        mine = rows.source == index
        here = mine & is_read
        read, first = int(lengths[here].sum()), int(lengths[here & is_first].sum())
        conversations, new = int((here & is_begin).sum()), int((here & is_begin & is_first).sum())
        ledger.append(
            LedgerRow(
                phase=1,
                source=source.source,
                domain=source.domain,
                domain_shares=dict(source.domain_shares),
                domains_known=source.domains_known,
                data_id=source.data_id,
                planned=int(lengths[mine].sum()),
                read=read,
                samples=conversations,
                epochs=conversations / source.documents,
                first=first,
                repeated=read - first,
                documents_first=new,
                documents_repeated=conversations - new,
                masked=read - int(rows.targets[here].sum()),
                **_not_read(plan, rows, index, here, is_whole=end == len(lengths)),
                pieces_isolated=int(here.sum()),
                distinct=first,
                distinct_documents=new,
                place=conversations,
            )
        )
    planned, read = (
        count * rows.length - int(lengths[:pieces].sum())
        for count, pieces in ((rows.rows, len(lengths)), (cursor.rows_read, end))
    )
    known_before = {row.data_id for row in before if row.read}
    ledger = [_unknown(row) if row.data_id in known_before else row for row in ledger]
    return [*before, *ledger, LedgerRow(1, PADDING, "", PADDING, planned, read, padding=read)]


def _not_read(plan: StagePlan, rows: Rows, index: int, here: NDArray[np.bool_], *, is_whole: bool) -> dict[str, int]:
    """What of a source's conversations is in no row; `here` are its pieces that have been read, `[pieces]`."""
    assert plan.sft is not None, "conversations are read by an sft stage"
    lost = "trimmed" if plan.sft.options.overlong == "trim-thinking" else "truncated"
    found = {lost: int(rows.cut[here].sum()), "documents_cut": int((rows.cut[here & rows.is_begin] > 0).sum())}
    if is_whole:
        count = rows.counts[index]
        found["documents_cut"] += count.split.conversations
        found["dropped"] = count.dropped.tokens + count.untrained.tokens
        found["documents_dropped"] = count.dropped.conversations + count.untrained.conversations
    return found


def _unknown(row: LedgerRow) -> LedgerRow:
    """A row whose source was read before in another order: nobody knows which of its tokens are new."""
    fields = ("first", "repeated", "documents_first", "documents_repeated", "distinct", "distinct_documents")
    return replace(row, **dict.fromkeys(fields))
