"""What was found, as data: numbers with their intervals, tables, headlines and findings.

Shares stand as ratios in [0, 1], losses in nats a token. `null` means not known, never zero.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from megatron_ext.recipe.study_schema import StageKind

Verdict = Literal["shows", "shows the opposite", "cannot tell", "not run"]
Drawn = Literal["items and seeds", "items", "seeds", "nothing"]
"""What an interval was drawn from; nothing: there is none."""

NoNumber = Literal["not run", "running", "failed"]
"""Why a cell has none."""

ContaminationStatus = Literal["clean", "overlaps", "unknown", "not-applicable", "not run"]


class ReportPart(BaseModel):
    """A frozen part of a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(ReportPart):
    """A number and where it may lie for other items and seeds."""

    value: float
    low: float | None = None  # None where neither items nor an interval were kept
    high: float | None = None


class MetricInfo(ReportPart):
    """One column of a table: a task's headline metric, or a mean of tasks."""

    stage: StageKind
    suite: str
    name: str  # of a domain `domain:NAME`
    role: Literal["aggregate", "task", "domain"]  # domain: our unweighted mean of a domain's tasks, for bars
    domain: str = ""
    of: tuple[str, ...] = ()  # names of tasks or aggregates that it is the mean of
    metric: str = ""  # of a task: acc, avg@4, loss, …
    unit: str = ""  # share, nats per token, bits per byte; "" where it has none, or nothing has been measured
    is_share: bool  # in [0, 1], shown as percent; else as it is
    is_higher_better: bool
    is_main: bool = False  # that the report's headline is about
    items: int | None = None  # of a task; of means the sum over theirs
    seed_deviation: float | None = None  # of one replicate around its arm's mean, pooled over arms
    seed_degrees: int = 0  # how many degrees of freedom replicates of first stages give; 0: seeds are not known
    paired_deviation: float | None = None  # the same without what arms share; None where they share no stage
    paired_degrees: int = 0  # degrees of freedom of it
    notes: tuple[str, ...] = ()


class Replicate(ReportPart):
    """What one seed found."""

    replicate: int
    seed: int
    stage_id: str
    value: float


class Cell(ReportPart):
    """One number of one row."""

    metric: str
    suite: str
    role: Literal["aggregate", "task", "domain"]
    state: Literal["found"] | NoNumber
    reason: str = ""  # where there is no number
    estimate: Estimate | None = None
    delta: Estimate | None = None  # to the baseline; None: no baseline here, or it has no number
    replicates: tuple[Replicate, ...] = ()
    items: int | None = None
    is_best: bool = False
    best_ratio: float | None = None  # of the draws in which this row is the best of all
    drawn: Drawn = "nothing"
    contamination: ContaminationStatus = "unknown"
    notes: tuple[str, ...] = ()


class Row(ReportPart):
    """What arms have in common up to a kind of stage: one line of a table."""

    stage: StageKind
    label: str
    arms: tuple[str, ...]
    recipes: tuple[str, ...]  # of the chain up to here
    stage_ids: tuple[str, ...]  # of its last stage, one for each replicate
    seeds_planned: int
    seeds_run: int  # of which something was evaluated
    seeds_by_stage: dict[StageKind, int]  # different stages of each kind behind the replicates
    is_baseline: bool
    cells: tuple[Cell, ...]


class Headline(ReportPart):
    """The answer in short, of one kind of stage."""

    stage: StageKind
    suite: str
    metric: str
    chosen: str = ""  # why this number, in words
    best: str | None  # label of a row; None: nothing was evaluated
    tied: tuple[str, ...] = ()  # labels of all rows with the best value, where they are several
    value: Estimate | None = None
    baseline: str | None = None
    over_baseline: Estimate | None = None
    second: str | None = None
    over_second: Estimate | None = None
    best_ratio: float | None = None  # None where nothing was drawn
    drawn: Drawn = "nothing"  # of all rows with a number: what best_ratio is counted in
    seeds: tuple[int, int] = (0, 0)  # fewest and most of a row that was run
    items: int | None = None
    evaluated: int = 0  # rows with a number
    rows: int = 0


class PaperNumber(ReportPart):
    """What the paper says of a comparison, in points."""

    better: float | None
    than: float | None
    delta: float
    source: str
    remark: str


class Comparison(ReportPart):
    """Two groups of arms."""

    better: tuple[str, ...]
    than: tuple[str, ...]
    stage: StageKind
    suite: str
    metric: str
    expect: Literal["higher", "equal"]
    within: float | None  # of expect equal, in points
    is_share: bool
    unit: str = ""  # of values, as of a column
    better_value: float | None
    than_value: float | None
    delta: Estimate | None  # better - than; of losses than - better, so that more is better
    seeds: tuple[int, int]  # fewest and most of the arms in it
    items: int | None
    drawn: Drawn
    verdict: Verdict
    reason: str  # of the verdict, in words
    paper: PaperNumber | None


class Finding(ReportPart):
    """A claim, and whether the study shows it."""

    name: str
    says: str
    verdict: Verdict
    comparisons: tuple[Comparison, ...]
