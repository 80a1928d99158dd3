"""The held-out rows of one source: the same ones at every validation, in every layout."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_tools.errors import DataError
from megatron_ext.datasets.batch import Batch, rows_of_rank
from megatron_ext.datasets.documents import Documents, first_unknown_id, unknown_id_error
from megatron_ext.datasets.open_files import OpenFiles
from megatron_ext.datasets.shards import ShardedDocuments, open_documents
from megatron_ext.plan.stage_plan import SourcePlan, StagePlan

_FILES_OPEN = 4
"""Rows are read in file order, from one shard after another; the training data keeps its own files open."""

_PADDING = "padding"  # sample id of a row that only fills up a microbatch


def held_out_batches(
    plan: StagePlan,
    source: SourcePlan,
    *,
    data_parallel_rank: int,
    data_parallel_size: int,
    keep_tail: bool = False,
) -> Iterator[Batch]:
    """Yields this rank's microbatches of a source's first held-out rows, in file order.

    Row k holds the tokens from `k * sequence_length` of the file on. Every rank yields equally many
    microbatches of equal size, because all must take part in every forward pass; rows that only
    fill up are end-of-document tokens under a loss mask of 0, with the sample id `padding`. Rows
    are at most `plan.cadence.validation_samples`, and at most what the held-out set has.

    Args:
        plan: The stage.
        source: One of `plan.data.sources`.
        data_parallel_rank: This rank.
        data_parallel_size: How many there are.
        keep_tail: Whether what is left behind the last whole row is a row too, filled up under a loss mask of 0.

    Raises:
        DataError: If the held-out files are missing, damaged, not the planned ones, shorter than
            one row, or hold an id outside the vocabulary.
    """
    length, micro = plan.batch.sequence_length, plan.batch.micro_batch_size
    documents = open_documents(
        source.validation_prefix,
        source=source.source,
        data_id=source.validation_data_id,
        files=OpenFiles(most=_FILES_OPEN),
    )
    labels = documents.num_tokens - 1
    num_rows = min(plan.cadence.validation_samples, -(-labels // length) if keep_tail else labels // length)
    if num_rows == 0:
        raise DataError(
            f"{source.validation_prefix}.bin: has {documents.num_tokens} tokens, one row of sequence length {length} "
            f'needs {length + 1}; source "{source.source}" cannot be validated. Hold out more, or shorten the rows.'
        )
    index = plan.data.sources.index(source)
    for rows in rows_of_rank(
        num_microbatches=-(-num_rows // (micro * data_parallel_size)),
        micro_batch_size=micro,
        data_parallel_rank=data_parallel_rank,
        data_parallel_size=data_parallel_size,
    ):
        tokens = np.full((micro, length + 1), plan.data.eod_id, dtype=np.int64)
        starts: list[list[int]] = [[] for _ in rows]
        for place, row in enumerate(rows):
            if row < num_rows:
                filled = min(length, labels - row * length)
                _read_row(documents, row * length, tokens[place, : filled + 1], vocab_size=plan.model.vocab_size)
                starts[place] = documents.starts_in_file_order(row * length, filled)
        yield Batch.from_rows(
            tokens,
            source_index=[index] * micro,
            sample_ids=[f"{source.source}.validation:0:{row}" if row < num_rows else _PADDING for row in rows],
            row_mask=[float(row < num_rows) for row in rows],
            document_starts=starts if plan.data.document_isolation != "none" else None,
            masked_labels=[range(max(0, labels - row * length), length) if row < num_rows else () for row in rows],
        )


def _read_row(documents: Documents | ShardedDocuments, start: int, out: np.ndarray, *, vocab_size: int) -> None:
    documents.read_in_file_order(start, out)
    unknown = first_unknown_id(out, vocab_size=vocab_size)
    if unknown is not None:
        raise unknown_id_error(
            source=f"{documents.source} (validation)",
            document=documents.document_at(start + unknown),
            token_id=int(out[unknown]),
            vocab_size=vocab_size,
        )
