"""The batches of a stage: samples of all its sources, interleaved to their planned counts, phase by phase.

Each source has one cursor for all phases, and for the stages that continue this one: a change of shares
or budget changes who gives the next sample, and not which sample of it that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import DataError
from megatron_ext.datasets.batch import Batch, rows_of_rank
from megatron_ext.datasets.begun import Begun, BegunDocuments
from megatron_ext.datasets.cursor import WINDOW_SAMPLES, EpochSample, SourceCursor
from megatron_ext.datasets.documents import Span, first_unknown_id, unknown_id_error
from megatron_ext.datasets.interleave import Interleaver
from megatron_ext.datasets.open_files import OpenFiles
from megatron_ext.datasets.packed_cursor import PackedCursor, open_packed_cursor
from megatron_ext.datasets.shards import open_documents
from megatron_ext.datasets.stream import blocks_to_hold
from megatron_ext.plan.stage_plan import StagePlan

_STATE_VERSION = 4


class BlendedCursor:
    """Reads a stage's global batches; each rank reads its own rows and only counts the others.

    Which samples a global batch holds, and in which rows, depends on the plan alone: not on the
    number of ranks, nor on where the run was stopped and resumed.
    """

    def __init__(self, plan: StagePlan, *, data_parallel_rank: int, data_parallel_size: int) -> None:
        """Opens the sources and stands before the first step.

        Args:
            plan: The stage.
            data_parallel_rank: This rank among those that hold the same weights' shards.
            data_parallel_size: How many there are; with the micro-batch it divides the global batch.

        Raises:
            DataError: If a source is missing, damaged or not the one that was planned.
        """
        batch = plan.batch
        self._plan = plan
        self._data_parallel_rank, self._data_parallel_size = data_parallel_rank, data_parallel_size
        self._names = [source.source for source in plan.data.sources]
        self._phases = plan.data.all_phases()
        self._planned = [[source.samples for source in phase.sources] for phase in self._phases]
        total = sum(sum(planned) for planned in self._planned)
        assert total == batch.total_samples, "the plan's samples of all sources sum to the stage's"
        self._enter(0)
        self._carried: list[dict[str, Any]] = []  # places in sources that earlier stages read and this one does not
        self._before: list[dict[str, Any]] = []  # ledger of the stages before, a row a source
        self._begins: list[list[int]] = []  # of each phase entered: the place of each of its sources at its start
        self._cursors = _open_cursors(plan)
        self._begun: dict[str, BegunDocuments] = {}  # by source, for the order that its cursor reads in

    @property
    def consumed_samples(self) -> int:
        """Samples of the stage that lie behind the cursor, of all ranks."""
        return sum(map(sum, self._planned[: self._phase])) + sum(self._interleaver.counts)

    @property
    def consumed_tokens(self) -> int:
        """Processed tokens that lie behind the cursor, of all ranks."""
        return self.consumed_samples * self._plan.batch.sequence_length

    def next_step(self) -> tuple[Batch, ...]:
        """This rank's microbatches of the next global batch; the cursor moves behind it.

        Raises:
            DataError: If the planned samples are used up, or a token id is outside the vocabulary.
        """
        drawn = self._draw_step()
        return tuple(self._read([drawn[row] for row in rows]) for rows in self._rows(len(drawn)))

    def next_sample_ids(self) -> list[str]:
        """The `source:epoch:sample` of all rows of the next global batch, unread; the cursor moves behind it.

        Raises:
            DataError: If the planned samples are used up.
        """
        return [self._sample_id(source, sample) for source, sample in self._draw_step()]

    def _draw_step(self) -> list[tuple[int, EpochSample]]:
        num_rows = self._plan.batch.batch_size_at(self.consumed_samples)
        planned = self._plan.batch.total_samples
        if self.consumed_samples + num_rows > planned:
            raise DataError(
                f"data.blend: {self.consumed_samples} of the stage's {planned} planned samples have been read and "
                f"{num_rows} more were asked for; nothing is repeated unasked. Raise budget.tokens."
            )
        sources = self._deal(num_rows)
        return [(source, self._cursors[source].draw()) for source in sources]

    def _sample_id(self, source: int, sample: EpochSample) -> str:
        return f"{self._names[source]}:{sample.epoch}:{sample.sample}"

    def _enter(self, phase: int, counts: list[int] | None = None) -> None:
        self._phase = phase
        self._interleaver = Interleaver(self._planned[phase], counts=counts)

    def _deal(self, num_rows: int) -> list[int]:
        """The sources of the next rows; a phase begins with its first rows, and moves cursors then if it is to."""
        if sum(self._interleaver.counts) == sum(self._planned[self._phase]):
            self._enter(self._phase + 1)
        sources = self._phases[self._phase].sources
        places = [self._names.index(source.source) for source in sources]
        if sum(self._interleaver.counts) == 0:
            for place, source in zip(places, sources, strict=True):
                if source.cursor == "fresh":
                    self._cursors[place].start_afresh()
                elif source.cursor == "replay":
                    self._cursors[place].replay()
                    self._begun.pop(self._names[place], None)
            self._begins.append([self._cursors[place].place for place in places])
        return [places[dealt] for dealt in self._interleaver.take(num_rows)]

    def locate(self, sample_id: str) -> list[Span]:
        """The documents and offsets behind a `source:epoch:sample` of a batch, in reading order."""
        name, epoch, sample = sample_id.split(":")
        return self._cursors[self._names.index(name)].locate(EpochSample(int(epoch), int(sample)))

    def pieces_of(self, sample_id: str) -> list[tuple[str, Span]]:
        """The same with the name of the source of each."""
        return [(sample_id.split(":")[0], span) for span in self.locate(sample_id)]

    def read_sample(self, sample_id: str) -> NDArray[np.int64]:
        """The tokens that `locate` names, `[sequence_length + 1]`."""
        name, epoch, sample = sample_id.split(":")
        row = np.empty(self._plan.batch.sequence_length + 1, dtype=np.int64)
        self._cursors[self._names.index(name)].read(EpochSample(int(epoch), int(sample)), row)
        return row

    def packed_cursor(self, source: str) -> PackedCursor | None:
        """The cursor of a source whose documents are packed, to be asked and not moved; None of another one."""
        cursor = self._cursors[self._names.index(source)]
        return cursor if isinstance(cursor, PackedCursor) else None

    def documents_begun(self, source: str, place: int) -> Begun:
        """Documents of a source that begin in the samples before a place of its reading order."""
        if source not in self._begun:
            cursor = self._cursors[self._names.index(source)]
            assert isinstance(cursor, SourceCursor), "packed rows are counted by their cursor"
            with_row_starts = self._plan.data.document_isolation != "none"
            self._begun[source] = BegunDocuments(cursor, with_row_starts=with_row_starts)
        return self._begun[source].before(place)

    def cutting(self, source: str) -> str:
        """What decides which tokens a sample of a source holds; see `SourceCursor.cutting`."""
        return self._cursors[self._names.index(source)].cutting

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on behind the last step: small, JSON-able, the same on all ranks."""
        state = {
            "version": _STATE_VERSION,
            "phase": self._phase,
            "planned_samples": self._planned,
            "samples": list(self._interleaver.counts),
            "sources": [
                {"source": name, "cursor": cursor.state_dict()}
                for name, cursor in zip(self._names, self._cursors, strict=True)
            ],
            "carried": self._carried,
            "before": self._before,
            "begins": self._begins,
        }
        return deepcopy(state)  # a checkpoint is written while the run goes on

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, in any data-parallel layout; sources are known by their content.

        Raises:
            DataError: If the state belongs to another seed, blend, data or sequence length.
        """
        _require_version(state, of="the checkpoint")
        theirs = [(place["source"], place["cursor"]["data_id"]) for place in state["sources"]]
        mine = [(cursor.documents.source, cursor.documents.data_id) for cursor in self._cursors]
        if [data_id for _, data_id in theirs] != [data_id for _, data_id in mine]:
            raise DataError(
                f"data position: sources: the checkpoint has {_named(theirs)}, this run {_named(mine)}; its place "
                "cannot be taken up. Resume with the recipe and data of the checkpoint."
            )
        if state["planned_samples"] != self._planned:
            raise DataError(
                f"data position: planned_samples: the checkpoint has {state['planned_samples']!r}, this run "
                f"{self._planned!r}; its place cannot be taken up. Resume with the recipe of the checkpoint."
            )
        try:
            self._enter(state["phase"], counts=state["samples"])
        except (ValueError, IndexError) as error:
            raise DataError(
                f"data position: samples: {error}; the checkpoint is damaged. Resume from an earlier one."
            ) from None
        for cursor, place in zip(self._cursors, state["sources"], strict=True):
            cursor.load_state_dict(place["cursor"])
        self._begun.clear()
        self._carried, self._before, self._begins = (deepcopy(state[key]) for key in ("carried", "before", "begins"))

    def take_over(self, state: dict[str, Any], *, ledger: Sequence[dict[str, Any]]) -> None:
        """Goes on behind the end of the stage before: each source where that one left it, whatever its name was.

        Args:
            state: `state_dict` at the end of the parent stage.
            ledger: What the stages before have read, a row a source (`ledger.sum_by_source`).

        Raises:
            DataError: If a source was read with another seed.
        """
        _require_version(state, of="the parent stage")
        places = {place["cursor"]["data_id"]: place for place in [*state["carried"], *state["sources"]]}
        for cursor in self._cursors:
            if (place := places.pop(cursor.documents.data_id, None)) is not None:
                cursor.take_over(place["cursor"])
        self._begun.clear()
        self._carried = list(places.values())
        self._before = list(ledger)

    def begin_anew(self, *, ledger: Sequence[dict[str, Any]]) -> None:
        """Keeps for the ledger what the stages behind the weights have read; every source stays at its first sample.

        Args:
            ledger: A row a source (`ledger.sum_anew`).
        """
        self._before = list(ledger)

    def _rows(self, num_rows: int) -> list[list[int]]:
        """This rank's rows of a global batch, by microbatch."""
        micro = self._plan.batch.micro_batch_size
        num_microbatches, rest = divmod(num_rows, micro * self._data_parallel_size)
        assert rest == 0, "the plan divides every global batch among ranks"
        return rows_of_rank(
            num_microbatches=num_microbatches,
            micro_batch_size=micro,
            data_parallel_rank=self._data_parallel_rank,
            data_parallel_size=self._data_parallel_size,
        )

    def _read(self, samples: list[tuple[int, EpochSample]]) -> Batch:
        """Reads one microbatch."""
        rows = np.empty((len(samples), self._plan.batch.sequence_length + 1), dtype=np.int64)
        starts, unlabelled = [], []
        for row, (source, sample) in zip(rows, samples, strict=True):
            cursor = self._cursors[source]
            spans = cursor.read(sample, row)
            unlabelled.append(cursor.seams(sample))
            if isinstance(cursor, PackedCursor):
                starts.append(cursor.starts_in_row(sample))
            else:
                starts.append([0, *accumulate(span.length for span in spans[:-1])])
            unknown = first_unknown_id(row, vocab_size=self._plan.model.vocab_size)
            if unknown is not None:
                raise self._unknown_id(source, sample, unknown, int(row[unknown]))
        return Batch.from_rows(
            rows,
            source_index=[source for source, _ in samples],
            sample_ids=[self._sample_id(source, sample) for source, sample in samples],
            document_starts=starts if self._plan.data.document_isolation != "none" else None,
            masked_labels=unlabelled if any(unlabelled) else (),
        )

    def _unknown_id(self, source: int, sample: EpochSample, place: int, token_id: int) -> DataError:
        documents = [span.document for span in self._cursors[source].locate(sample) for _ in range(span.length)]
        return unknown_id_error(
            source=self._names[source],
            document=documents[place],
            token_id=token_id,
            vocab_size=self._plan.model.vocab_size,
        )


def _open_cursors(plan: StagePlan) -> Sequence[SourceCursor | PackedCursor]:
    """The cursors of all sources, before their first row."""
    files, length = OpenFiles(), plan.batch.sequence_length
    opened = [
        open_documents(source.prefix, source=source.source, data_id=source.data_id, files=files)
        for source in plan.data.sources
    ]
    if plan.data.packing != "none":
        return [
            open_packed_cursor(plan, source, documents)
            for source, documents in zip(plan.data.sources, opened, strict=True)
        ]
    held = blocks_to_hold(opened, window_tokens=WINDOW_SAMPLES * length)
    return [
        SourceCursor(documents, seed=plan.seed, sequence_length=length, blocks_held=blocks)
        for documents, blocks in zip(opened, held, strict=True)
    ]


def _require_version(state: dict[str, Any], *, of: str) -> None:
    if state.get("version") != _STATE_VERSION:
        raise DataError(
            f"data position: version: {of} has {state.get('version')!r}, this program reads {_STATE_VERSION}. Go on "
            "with the version of the program that wrote it, or train anew: give --run-root another folder."
        )


def _named(sources: Sequence[tuple[str, str]]) -> str:
    """Names and identities, as in `a (1f3e5a7b9c1d…), b (…)`."""
    return ", ".join(f"{name} ({data_id[:12]}…)" for name, data_id in sources)
