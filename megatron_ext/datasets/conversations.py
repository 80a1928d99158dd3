"""The batches of an sft stage: packed rows of conversations, a row a microbatch.

A row holds the pieces of several conversations, each padded to `sft.pad_multiple`, and padding behind them, a
segment of its own. A token's label is the next token of its piece; the loss mask of a position is the mask of its
label, so nothing is trained across pieces, on padding, or on what the chat mask leaves out. Masks hold weights:
1 with `sft.loss: token`; `SAMPLE_WEIGHT` / trained tokens of the conversation with `sample`, where pieces of a
split one share its weight. The gradient of a step is divided by the sum of its weights.

Rows of a step are dealt to ranks as pretraining's are. Steps whose rows do not divide among the ranks are filled
up with rows of padding, under a loss mask of 0: what is trained hangs on no layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools.dataset import read_dataset
from data_tools.errors import DataError
from data_tools.loss_mask import LossMasks, read_masks
from data_tools.pack_rows import Rows
from megatron_ext.datasets.batch import Batch, rows_of_rank
from megatron_ext.datasets.documents import Span, first_unknown_id, unknown_id_error
from megatron_ext.datasets.open_files import OpenFiles
from megatron_ext.datasets.shards import open_documents
from megatron_ext.plan.sft_rows import held_out_rows, rows_of_stage
from megatron_ext.plan.stage_plan import SourcePlan, StagePlan
from megatron_ext.recipe.step_weight import SAMPLE_WEIGHT

PADDING = "padding"
"""Sample id of a row that only fills up a step."""

_STATE_VERSION = 1
_HELD_OUT_FILES_OPEN = 16
"""A row's conversations lie in any shards; the training data keeps its own files open, half of what the process may."""


class Reader:
    """Tokens and masks of one source's conversations."""

    def __init__(self, prefix: str, *, source: str, data_id: str, files: OpenFiles) -> None:
        """Opens the dataset.

        Args:
            prefix: PREFIX of the dataset.
            source: Name of the source.
            data_id: Identity of the content, as the plan recorded it.
            files: Opens them; one for all sources that are read together.

        Raises:
            DataError: It is missing, damaged or not the one that was planned.
        """
        self.source = source
        self._documents = open_documents(prefix, source=source, data_id=data_id, files=files)
        dataset = read_dataset(prefix)
        self._masks = None
        if dataset.chat is not None:
            self._masks = LossMasks.joined(read_masks(shard.prefix) for shard in dataset.shards)

    def read(self, spans: Sequence[Span], *, tokens_in_all: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids and mask of a piece: the spans of one conversation, of which `tokens_in_all` are looked at."""
        ids = np.empty(sum(span.length for span in spans), np.int64)
        self._documents.read(spans, ids)
        if self._masks is None:
            return ids, np.ones(len(ids), np.bool_)
        whole = self._masks.mask(spans[0].document, tokens=tokens_in_all)
        return ids, np.concatenate([whole[span.start : span.start + span.length] for span in spans])


class RowReader:
    """Makes batches of rows.

    Args:
        plan: The stage.
        rows: What is read.
        readers: Of each source of `rows`.
        source_index: Place of each reader's source in the plan.
    """

    def __init__(self, plan: StagePlan, rows: Rows, readers: Sequence[Reader], source_index: Sequence[int]) -> None:
        self._plan, self._rows, self._readers, self._source_index = plan, rows, readers, source_index

    def _weight(self, row: int, place: int, *, loss: str) -> float:
        """Of each trained token of the piece at a place of a row."""
        if loss == "token":
            return 1.0
        return SAMPLE_WEIGHT / int(self._rows.targets_of_conversation[self._rows.first_piece[row] + place])

    def spans(self, row: int) -> list[tuple[int, list[Span]]]:
        """Of each piece of a row its source's place among the readers, and its spans."""
        pieces, found = self._rows.pieces, []
        for piece in range(int(self._rows.first_piece[row]), int(self._rows.first_piece[row + 1])):
            start, stop, skip_start, skip_stop = (
                int(column[piece]) for column in (pieces.start, pieces.stop, pieces.skip_start, pieces.skip_stop)
            )
            document = int(pieces.conversation[piece])
            spans = [Span(document, start, skip_start - start), Span(document, skip_stop, stop - skip_stop)]
            found.append((int(self._rows.source[piece]), [span for span in spans if span.length]))
        return found

    def batch(self, row: int | None, *, loss: str, sample_id: str) -> Batch:
        """One row, `[1, s]`; None gives a row of padding.

        Args:
            row: Its number.
            loss: `token` or `sample`.
            sample_id: Its name.

        Raises:
            DataError: An id is outside the vocabulary, or a file was shortened.
        """
        length = self._rows.length
        tokens = np.full(length, self._plan.data.eod_id, np.int64)
        labels = tokens.copy()
        weights = np.zeros(length, np.float32)
        source_index = np.zeros(length, np.int64)
        begins, filled = [], 0
        for place, (source, spans) in enumerate(self.spans(row) if row is not None else ()):
            ids, mask = self._readers[source].read(spans, tokens_in_all=spans[-1].start + spans[-1].length)
            self._check_ids(source, spans, ids)
            end = filled + len(ids)
            tokens[filled:end] = ids
            labels[filled : end - 1] = ids[1:]
            weights[filled : end - 1] = mask[1:] * self._weight(row, place, loss=loss)
            source_index[filled:end] = self._source_index[source]
            begins.append(filled)
            filled += -(-len(ids) // self._rows.pad_multiple) * self._rows.pad_multiple
        places = [*begins, filled, length] if filled < length else [*begins, length]
        return Batch(
            tokens=torch.from_numpy(tokens)[None],
            labels=torch.from_numpy(labels)[None],
            loss_mask=torch.from_numpy(weights)[None],
            position_ids=torch.arange(length)[None],
            source_index=torch.from_numpy(source_index)[None],
            sample_ids=(sample_id,),
            cu_seqlens=tuple(places),
        )

    def _check_ids(self, source: int, spans: Sequence[Span], ids: NDArray[np.int64]) -> None:
        vocab_size = self._plan.model.vocab_size
        if (unknown := first_unknown_id(ids, vocab_size=vocab_size)) is not None:
            raise unknown_id_error(
                source=self._readers[source].source,
                document=spans[0].document,
                token_id=int(ids[unknown]),
                vocab_size=vocab_size,
            )


class ConversationCursor:
    """Reads a stage's steps; each rank reads its own rows.

    Which rows a step holds depends on the plan alone, so the number of the next step is the whole state.
    """

    def __init__(self, plan: StagePlan, *, data_parallel_rank: int, data_parallel_size: int) -> None:
        """Packs the rows, opens the sources and stands before the first step.

        Args:
            plan: The stage, of kind sft.
            data_parallel_rank: This rank among those that hold the same weights' shards.
            data_parallel_size: How many there are.

        Raises:
            DataError: If a source is missing, damaged or not the one that was planned.
        """
        assert plan.sft is not None, "conversations are read by an sft stage"
        self._plan, self._sft = plan, plan.sft
        self._data_parallel_rank, self._data_parallel_size = data_parallel_rank, data_parallel_size
        self.rows = rows_of_stage(
            plan.data.sources,
            plan.sft.options,
            sequence_length=plan.batch.sequence_length,
            step=plan.batch.global_batch_size,
            seed=plan.seed,
            store=plan.sft.store,
        )
        if self.rows.rows != plan.sft.rows:
            raise DataError(
                f"sft: {self.rows.rows:,} rows are packed, {plan.sft.rows:,} were planned; the data was changed since. "
                "Restore it, or start a new stage on the new data."
            )
        files = OpenFiles()
        readers = [
            Reader(source.prefix, source=source.source, data_id=source.data_id, files=files)
            for source in plan.data.sources
        ]
        self._reader = RowReader(plan, self.rows, readers, range(len(readers)))
        targets_of_row = np.add.reduceat(self.rows.targets, self.rows.first_piece[:-1])
        self._targets_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(targets_of_row)])
        self.steps_read = 0
        self.before: list[dict[str, Any]] = []  # ledger of the stages behind the weights, a row a source

    def begin_anew(self, *, ledger: Sequence[dict[str, Any]]) -> None:
        """Keeps for the ledger what the stages behind the weights have read.

        Args:
            ledger: A row a source (`ledger.sum_anew`).
        """
        self.before = list(ledger)

    @property
    def rows_read(self) -> int:
        """Rows behind the cursor, of all ranks; rows of padding are none."""
        return int(self.rows.first_row[self.steps_read])

    @property
    def consumed_samples(self) -> int:
        """Rows or conversations behind the cursor, as `sft.batch_unit` says."""
        return min(self.steps_read * self._plan.batch.global_batch_size, self._plan.batch.total_samples)

    @property
    def consumed_tokens(self) -> int:
        """Processed tokens behind the cursor, of all ranks."""
        return self.rows_read * self.rows.length

    @property
    def loss(self) -> str:
        """What weighs the same in the next step: `token` or `sample`."""
        options = self._sft.options
        switch = options.loss_switch_tokens
        if switch is None or self._targets_before[self.rows_read] < switch:
            return options.loss
        return "sample" if options.loss == "token" else "token"

    def next_step(self) -> tuple[Batch, ...]:
        """This rank's microbatches of the next step, a row each; the cursor moves behind it.

        Raises:
            DataError: If the planned steps are used up, or a token id is outside the vocabulary.
        """
        loss = self.loss
        numbers = self._draw_step()
        ranks = self._data_parallel_size
        mine = rows_of_rank(
            num_microbatches=-(-len(numbers) // ranks),
            micro_batch_size=1,
            data_parallel_rank=self._data_parallel_rank,
            data_parallel_size=ranks,
        )
        read = [numbers[place] if place < len(numbers) else None for (place,) in mine]
        return tuple(self._reader.batch(row, loss=loss, sample_id=_sample_id(row)) for row in read)

    def next_sample_ids(self) -> list[str]:
        """The `row:number` of all rows of the next step, unread; the cursor moves behind it."""
        return [_sample_id(row) for row in self._draw_step()]

    def _draw_step(self) -> range:
        if self.steps_read >= self.rows.steps:
            raise DataError(
                f"budget.examples: all {self.rows.steps:,} steps of the stage have been read and one more was asked "
                "for; nothing is repeated unasked. Raise budget.examples."
            )
        begin, end = (int(self.rows.first_row[self.steps_read + more]) for more in (0, 1))
        self.steps_read += 1
        return range(begin, end)

    def pieces_of(self, sample_id: str) -> list[tuple[str, Span]]:
        """The source and the tokens behind a `row:number`, in reading order; of a row that only fills up, none."""
        if sample_id == PADDING:
            return []
        names = [source.source for source in self._plan.data.sources]
        spans = self._reader.spans(int(sample_id.removeprefix("row:")))
        return [(names[source], span) for source, inside in spans for span in inside]

    def read_sample(self, sample_id: str) -> NDArray[np.int64]:
        """The tokens that `pieces_of` names; padding left out."""
        batch = self._reader.batch(int(sample_id.removeprefix("row:")), loss="token", sample_id=sample_id)
        spans = self._reader.spans(int(sample_id.removeprefix("row:")))
        lengths = [sum(span.length for span in inside) for _, inside in spans]
        row = batch.tokens[0].numpy()
        begins = (batch.cu_seqlens or ())[: len(lengths)]
        return np.concatenate([row[begin : begin + size] for begin, size in zip(begins, lengths, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on behind the last step; the same on all ranks."""
        return {
            "version": _STATE_VERSION,
            "steps_read": self.steps_read,
            "rows": self.rows.rows,
            "before": self.before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, in any data-parallel layout.

        Raises:
            DataError: If the state belongs to other rows.
        """
        for name, mine in (("version", _STATE_VERSION), ("rows", self.rows.rows)):
            if state.get(name) != mine:
                raise DataError(
                    f"data position: {name}: the checkpoint has {state.get(name)!r}, this run {mine!r}; its place "
                    "cannot be taken up. Resume with the recipe of the checkpoint."
                )
        self.steps_read, self.before = state["steps_read"], list(state["before"])


def _sample_id(row: int | None) -> str:
    return PADDING if row is None else f"row:{row}"


def held_out_conversations(
    plan: StagePlan, source: SourcePlan, *, data_parallel_rank: int, data_parallel_size: int
) -> Iterator[Batch]:
    """Yields this rank's microbatches of a source's first packed held-out rows; each trained token weighs the same.

    Args:
        plan: The stage, of kind sft.
        source: One of `plan.data.sources`.
        data_parallel_rank: This rank.
        data_parallel_size: How many there are; all yield equally many.

    Raises:
        DataError: If the held-out files are missing, damaged or not the planned ones.
    """
    assert plan.sft is not None, "packed rows are of an sft stage"
    rows = held_out_rows(source.validation_prefix, plan.sft.options, sequence_length=plan.batch.sequence_length)
    files = OpenFiles(most=_HELD_OUT_FILES_OPEN)
    reader = Reader(source.validation_prefix, source=source.source, data_id=source.validation_data_id, files=files)
    row_reader = RowReader(plan, rows, [reader], [plan.data.sources.index(source)])
    num_rows = min(plan.cadence.validation_samples, rows.rows)
    for (place,) in rows_of_rank(
        num_microbatches=-(-num_rows // data_parallel_size),
        micro_batch_size=1,
        data_parallel_rank=data_parallel_rank,
        data_parallel_size=data_parallel_size,
    ):
        row = place if place < num_rows else None
        sample_id = f"{source.source}.validation:0:{row}" if row is not None else PADDING
        yield row_reader.batch(row, loss="token", sample_id=sample_id)
