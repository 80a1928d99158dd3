"""What a stage has read, and how often: by source and phase, and over the chain of stages behind it.

`ledger.json` of a checkpoint and `ledger` in `stage.json` are lists of rows:

| field               | meaning |
|---------------------|---------|
| phase               | from 1; 0 are all stages behind this one, summed |
| source, domain      | as planned; `data_id` is the content's, as it is stored: in other shards it is another source |
| domain_shares       | of the source's tokens; empty where all are of `domain` |
| domains_known       | `counted over the whole source`, in its manifests: at whole passes the shares of what was |
|                     | read, but for documents cut or left out; in between about, since the seed draws the order. |
|                     | `declared`: in its file |
| planned, read       | processed tokens: samples x sequence_length |
| samples             | rows read |
| epochs              | passes over the source that `read` makes |
| first, repeated     | tokens of `read` that no earlier row had read, and the others |
| documents_first     | documents whose first token was read for the first time, |
| documents_repeated  | and again |
| padding             | of `read`, positions of packed rows that hold no token; first + repeated are the others |
| masked              | tokens whose label is left out of the loss: of packed rows the last ones of documents, and |
|                     | where what another sequence length left is laid end to end; of conversations what the      |
|                     | assistant does not say. read - padding - masked were trained on |
| truncated, trimmed  | tokens of packed documents longer than a row that were cut off, or out of their thinking, |
| documents_cut       | of so many |
| dropped,            | tokens of those that were left out, counted with the last row of their window of rows, |
| documents_dropped   | and how many they were |
| long_documents      | what became of packed documents longer than a row; with `trim-thinking` in the recipe        |
|                     | `split` where the dataset does not say where it thinks. Empty: not packed, or not read yet  |
| sampled             | of stage rl: tokens of completions |
| pieces_isolated     | pieces of documents that were kept apart in their rows; 0 with `document_isolation: none` |
| distinct            | tokens of the source read at least once by the end of the row, over the chain |
| distinct_documents  | documents begun at least once, likewise |
| place               | tokens of the source's order before the cursor at the end of the row; packed: positions |
| cutting             | sequence length, and where other lengths were left (`SourceCursor.cutting`) |

`first`, `repeated` and `distinct`, and their documents, are null behind a `cursor: fresh` that left the first pass
unfinished, where `cursor: replay` met another sequence length in it, and for sources that `init_from` begins anew when
a part of them was read before. Worked example: a source of 400 tokens of which stages before read 160 has in a phase
of 320 tokens first 240 and repeated 80.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.errors import DataError
from megatron_ext.datasets.packed_reads import packed_reads
from megatron_ext.plan.stage_plan import SourcePlan, StagePlan

if TYPE_CHECKING:
    from megatron_ext.datasets.blended import BlendedCursor

LEDGER = "ledger.json"
PADDING = "padding"
"""Source and `data_id` of the row of positions that no source fills, in stages of kind sft and rl."""

_SUMMED = ("planned", "read", "samples", "epochs", "padding", "masked", "truncated", "trimmed", "documents_cut")
_SUMMED += ("dropped", "documents_dropped", "pieces_isolated", "sampled")
_CARRIED = ("distinct", "distinct_documents", "place", "cutting")
_SUMMED_WHERE_KNOWN = ("first", "repeated", "documents_first", "documents_repeated")


@dataclass(frozen=True)
class LedgerRow:
    """What one phase has read of one source; the fields are described at the top of this file."""

    phase: int
    source: str
    domain: str
    data_id: str
    planned: int = 0
    read: int = 0
    samples: int = 0
    epochs: float = 0.0
    first: int | None = 0
    repeated: int | None = 0
    documents_first: int | None = 0
    documents_repeated: int | None = 0
    padding: int = 0
    masked: int = 0
    truncated: int = 0
    trimmed: int = 0
    documents_cut: int = 0
    dropped: int = 0
    documents_dropped: int = 0
    pieces_isolated: int = 0
    distinct: int | None = 0
    distinct_documents: int | None = 0
    place: int = 0
    cutting: str = ""
    domain_shares: dict[str, float] = field(default_factory=dict)
    domains_known: str = "declared"
    long_documents: str = ""
    sampled: int = 0

    @property
    def trained(self) -> int:
        """Tokens that carried loss, those of skipped updates included."""
        return self.read - self.padding - self.masked

    def to_json(self) -> dict[str, Any]:
        """The row as a plain mapping."""
        return asdict(self)


def ledger_of(plan: StagePlan, cursor: BlendedCursor) -> list[LedgerRow]:
    """What has been read up to where a cursor stands.

    Args:
        plan: The stage.
        cursor: Of the stage.
    """
    state = cursor.state_dict()
    rows = [LedgerRow(**row) for row in state["before"]]
    newest = {row.data_id: row for row in rows}
    sources = {source.source: source for source in plan.data.sources}
    for number, phase in enumerate(plan.data.all_phases()):
        begins = state["begins"][number] if number < len(state["begins"]) else None
        counts = state["samples"] if number == state["phase"] else [given.samples for given in phase.sources]
        for at, given in enumerate(phase.sources):
            source = sources[given.source]
            planned = given.samples * plan.batch.sequence_length
            row = LedgerRow(number + 1, source.source, source.domain, source.data_id, planned)
            row = replace(row, domain_shares=dict(source.domain_shares), domains_known=source.domains_known)
            if (before := newest.get(source.data_id)) is not None:
                row = replace(row, **{name: getattr(before, name) for name in _CARRIED})
            if begins:
                row = _read(row, cursor, source, plan, begin=begins[at], samples=counts[at])
            newest[source.data_id] = row
            rows.append(row)
    return rows


def _read(
    row: LedgerRow, cursor: BlendedCursor, source: SourcePlan, plan: StagePlan, *, begin: int, samples: int
) -> LedgerRow:
    """A row that has read `samples` from place `begin` of its source's order on; given as of before."""
    length, cutting = plan.batch.sequence_length, cursor.cutting(source.source)
    if (packed := cursor.packed_cursor(source.source)) is not None:
        before = {"distinct": row.distinct, "documents": row.distinct_documents, "place": row.place}
        reads = packed_reads(plan, packed, begin=begin, samples=samples, **before)
        return replace(row, cutting=cutting, **reads)
    end = begin + samples * length
    known = row.distinct if _is_known(row, source, begin=begin, cutting=cutting) else None
    distinct = None if known is None else max(known, min(source.tokens, end))
    here, there = (cursor.documents_begun(source.source, place) for place in (end, begin))
    documents = here.in_first_pass + here.in_later_passes - there.in_first_pass - there.in_later_passes
    pieces = samples + documents - (here.at_row_start - there.at_row_start) + here.torn - there.torn
    first = new = begun = None
    if known is not None and distinct is not None:
        first = distinct - known
        after, before = (cursor.documents_begun(source.source, tokens) for tokens in (distinct, known))
        new = after.in_first_pass - before.in_first_pass if first else 0
        assert row.distinct_documents is not None, "known where distinct is"
        begun = row.distinct_documents + new
    return replace(
        row,
        read=samples * length,
        samples=samples,
        epochs=samples * length / source.tokens,
        first=first,
        repeated=None if first is None else samples * length - first,
        documents_first=new,
        documents_repeated=None if new is None else documents - new,
        masked=here.masked - there.masked,
        pieces_isolated=pieces if plan.data.document_isolation != "none" else 0,
        distinct=distinct,
        distinct_documents=begun,
        place=end,
        cutting=cutting,
    )


def _is_known(row: LedgerRow, source: SourcePlan, *, begin: int, cutting: str) -> bool:
    """Whether the tokens that earlier rows read are the first `distinct` of the order in which this one reads."""
    if row.distinct in (None, 0, source.tokens):
        return row.distinct is not None
    if begin > row.place:
        return False  # `fresh` left a part of the first pass: the next pass meets some of it for the first time
    # Samples of another length are other tokens, unless all that was read lies before them.
    return row.cutting == cutting or begin == row.place == row.distinct


def sum_by_source(rows: Sequence[LedgerRow]) -> list[LedgerRow]:
    """A row a source (its content counts, not its name), as phase 0."""
    return [
        sum_rows([row for row in rows if row.data_id == data_id])
        for data_id in dict.fromkeys(row.data_id for row in rows)
    ]


def sum_anew(rows: Sequence[LedgerRow], plan: StagePlan) -> list[LedgerRow]:
    """`sum_by_source` of the stages behind a stage that begins every source anew.

    Seed and sequence length may be others now, so nobody knows which tokens of a part the next ones are.

    Args:
        rows: Ledger of the stage that gives the weights.
        plan: The stage that begins with them.
    """
    assert plan.init_from is not None, f"{plan.stage_id} begins with no stage's weights"
    tokens = {source.data_id: source.tokens for source in plan.init_from.sources}
    sums = [replace(row, place=0) for row in sum_by_source(rows)]
    return [
        row if row.distinct in (0, tokens.get(row.data_id)) else replace(row, distinct=None, distinct_documents=None)
        for row in sums
    ]


def sum_rows(rows: Sequence[LedgerRow]) -> LedgerRow:
    """The sums of rows, as phase 0; what cannot be summed is the last one's."""
    sums: dict[str, Any] = {name: sum(getattr(row, name) for row in rows) for name in _SUMMED}
    for name in _SUMMED_WHERE_KNOWN:
        values = [getattr(row, name) for row in rows]
        sums[name] = None if None in values else sum(values)
    return replace(rows[-1], phase=0, **sums)


def checkpoint_at(path: Path) -> Path:
    """A checkpoint as it is; of a stage's folder its newest one.

    Raises:
        DataError: There is none.
    """
    if (path / "state.json").is_file():
        return path
    found = sorted((path / "checkpoints").glob("step_*"), key=lambda step: int(step.name.removeprefix("step_")))
    if not found and (path / "plan.json").is_file():
        raise DataError(
            f"{path}: nothing has been saved yet, so nothing is known to be read; wait for the first checkpoint, or "
            "run the recipe again where its run has ended"
        )
    if not found:
        raise DataError(f"{path}: no checkpoint; name a stage's folder, or one of its checkpoints/step_N")
    return found[-1]


def read_ledger(path: Path) -> list[LedgerRow]:
    """The ledger of a checkpoint; of a stage's folder that of its newest one.

    Raises:
        DataError: There is no checkpoint, or one of an earlier version.
    """
    path = checkpoint_at(path)
    try:
        return [LedgerRow(**row) for row in json.loads((path / LEDGER).read_bytes())]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path / LEDGER}: missing, damaged or of another version; take a whole checkpoint") from None


def ledger_json(rows: Sequence[LedgerRow]) -> str:
    """The rows as JSON."""
    return json.dumps([row.to_json() for row in rows], indent=1)
