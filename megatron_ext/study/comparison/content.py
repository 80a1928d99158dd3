"""A comparison as data: what `study compare --json` prints, explained in docs/how-to/compare-two-arms.md.

Everywhere `first` is A and `second` B; a difference is B - A. None means not known or not there, never zero.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Place = Literal["meaning", "placement", "study"]


class ComparisonPart(BaseModel):
    """A frozen part of a comparison."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SideFacts(ComparisonPart):
    """One of the two."""

    label: str
    chains: tuple[tuple[str, ...], ...]  # stage ids, first to last, of each replicate


class StagePair(ComparisonPart):
    """The stages that stand at one place of the two chains, of replicate 0."""

    place: str  # kind, and its number where a chain has several of it: "pretrain 2"
    first: str | None
    second: str | None
    is_shared: bool
    first_state: str  # finished, step 5 of 10, not run, not there
    second_state: str


class KeyDifference(ComparisonPart):
    """A key of the plans that differs."""

    place: str
    key: str
    part: Place  # study: as the study file says it of its arms
    first: str
    second: str
    note: str = ""


class LedgerDifference(ComparisonPart):
    """What the two stages of a place have read of one source."""

    place: str
    source: str
    domain: str
    data_id: str
    first_tokens: int  # processed, by this stage alone; 0: not read
    second_tokens: int
    first_epochs: float
    second_epochs: float
    first_trained: int
    second_trained: int


class Line(ComparisonPart):
    """One quantity over the processed tokens of a stage, mean of the replicates that have the point."""

    tokens: tuple[float, ...]
    values: tuple[float, ...]
    low: tuple[float, ...] = ()  # smallest and largest of several replicates
    high: tuple[float, ...] = ()


class CurvePair(ComparisonPart):
    """Held-out values of both, of one source."""

    place: str
    source: str
    first: Line | None
    second: Line | None


class MetricDifference(ComparisonPart):
    """One number of one evaluation of both."""

    place: str
    evaluation: str  # suite, or the tasks' names
    name: str
    role: str  # task, aggregate
    metric: str
    first: float | None
    second: float | None
    difference: float | None  # None: not comparable, see the note
    low: float | None = None  # 95 %, over items and seeds
    high: float | None = None
    is_higher_better: bool = True
    is_share: bool = False
    items: int | None = None
    first_replicates: int = 0
    second_replicates: int = 0
    note: str = ""


class Comparison(ComparisonPart):
    """Everything."""

    schema_version: Literal[1] = 1
    first: SideFacts
    second: SideFacts
    stages: tuple[StagePair, ...]
    keys: tuple[KeyDifference, ...]
    ledger: tuple[LedgerDifference, ...]
    curves: tuple[CurvePair, ...]
    metrics: tuple[MetricDifference, ...]
    notes: tuple[str, ...]
