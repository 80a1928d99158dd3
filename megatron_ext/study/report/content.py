"""The report as data: what `--format json` writes, and what pages and tables are made of.

docs/reference/study-report.md explains every field. Shares stand as ratios in [0, 1], losses in nats a token; a page
shows the former as percent and their differences as points. `null` means not known, never zero; what has not run has
`state` "not run" and a reason.
"""

from __future__ import annotations

from typing import Literal

from megatron_ext.recipe.study_schema import StageKind
from megatron_ext.study.report.numbers import ContaminationStatus, Finding, Headline, MetricInfo, ReportPart, Row

SCHEMA_VERSION: Literal[1] = 1


class Curve(ReportPart):
    """One quantity over the tokens of a chain, of all seeds of a stage."""

    stage: StageKind
    quantity: str  # loss, held_out, reward, pass_rate, lr, …
    source: str = ""  # of held_out
    label: str  # the recipe's name, or more of the chain
    node: str  # of the graph
    arms: tuple[str, ...]
    stage_ids: tuple[str, ...]
    tokens: tuple[float, ...]  # processed, from the beginning of the kind of stage in the chain
    mean: tuple[float, ...]
    low: tuple[float, ...] = ()  # smallest and largest of the seeds; () of one seed
    high: tuple[float, ...] = ()
    lines: int  # of metrics.jsonl that it was made of; more than points: each point is their mean


class SourceRead(ReportPart):
    """What one stage of an arm read of one source."""

    source: str
    domain: str
    tokens: int  # processed
    trained_tokens: int
    sampled_tokens: int
    passes: float
    first_tokens: int | None  # read for the first time in the chain; None: not known
    repeated_tokens: int | None
    documents_first: int | None
    documents_repeated: int | None


class StageRead(ReportPart):
    """What one stage of an arm read."""

    stage: StageKind
    stage_id: str
    recipe: str
    state: str  # finished, or what else
    planned_tokens: int
    shared_with: tuple[str, ...]  # other arms
    padding_tokens: int = 0
    sources: tuple[SourceRead, ...] = ()


class ArmReading(ReportPart):
    """What one arm read, of its first replicate."""

    arm: str
    note: str
    seeds: int
    stages: tuple[StageRead, ...]


class TaskContamination(ReportPart):
    """Whether one task's items were trained on, for each row."""

    stage: StageKind
    suite: str
    task: str
    statuses: dict[str, ContaminationStatus]  # by label of the row
    items: dict[str, int]  # that overlap, where that is known and not 0
    notes: tuple[str, ...]


class StageCost(ReportPart):
    """What one stage took."""

    stage_id: str
    stage: StageKind
    label: str
    replicate: int
    arms: tuple[str, ...]
    state: str
    reason: str = ""
    planned_tokens: int
    planned_flops: int
    planned_gpu_seconds: float | None
    tokens: int | None = None  # processed; None: not begun
    sampled_tokens: int | None = None
    flops: float | None = None  # the plan's, by steps done
    seconds: float | None = None  # wall time of the steps that stand in metrics.jsonl, and of saving between them
    processes: int | None = None
    evaluations: int = 0  # that the study asks for
    evaluation_seconds: float | None = None  # of all its evaluations: wall time of their last run
    evaluation_process_seconds: float | None = None

    @property
    def process_seconds(self) -> float | None:
        """Wall time of training times processes, with its evaluations."""
        parts = [self.seconds * self.processes] if self.seconds is not None and self.processes else []
        parts += [self.evaluation_process_seconds] if self.evaluation_process_seconds is not None else []
        return sum(parts) if parts else None


class CostSum(ReportPart):
    """Sums over stages."""

    label: str  # an arm, a kind of stage, or `all`
    stages: int
    finished: int
    planned_tokens: int
    planned_flops: int
    planned_gpu_seconds: float | None
    tokens: int
    flops: float
    seconds: float  # of training, summed over stages, whether one after the other or at once
    evaluation_seconds: float  # of evaluations, likewise
    process_seconds: float  # of both, times processes


class Costs(ReportPart):
    """What the study took, and what it was to take."""

    stages: tuple[StageCost, ...]
    arms: tuple[CostSum, ...]  # each with all its stages, the shared ones in each
    kinds: tuple[CostSum, ...]  # each stage once
    total: CostSum  # each stage once
    unread: int = 0  # finished or running stages whose metrics.jsonl could not be read whole
    processor: Literal["processor", "GPU", "process"]  # what time is counted of; process: runs did not record it


class GraphNode(ReportPart):
    """A stage with its replicates."""

    node: str  # id of the first replicate's stage
    parent: str | None
    stage: StageKind
    label: str
    recipe: str
    tokens: int  # of one seed, as planned
    seeds: int
    finished: int
    arms: tuple[str, ...]
    evaluations: int
    evaluated: int


class Missing(ReportPart):
    """A stage or an evaluation that has not finished, and why."""

    what: str
    arms: tuple[str, ...]
    state: str  # running, queued, blocked, stopped, failed, waiting
    reason: str
    log: str | None = None  # of its last attempt


class Provenance(ReportPart):
    """Where the report comes from."""

    created: str  # UTC, ISO 8601
    command: str
    version: str  # of the code that made the report
    study_file: str
    run_root: str
    stage_dates: dict[str, str]  # UTC, when stage.json was written, by stage id
    code: dict[str, str]  # versions of the code that trained, by stage id, where runs recorded it
    hardware: tuple[str, ...]  # that stages were trained on, where runs recorded it
    evaluations: dict[str, str]  # UTC, when results were written, by node
    engines: tuple[str, ...]
    unknown: tuple[str, ...] = ()  # sentences: lines of runs.jsonl and metrics.jsonl that could not be read


class Report(ReportPart):
    """All of it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    study: str
    note: str
    baseline: str | None
    is_provisional: bool
    headlines: tuple[Headline, ...]  # last kind of stage first
    findings: tuple[Finding, ...]
    findings_left_out: tuple[str, ...] = ()  # names of those whose arms are not all in this report
    findings_notes: tuple[str, ...] = ()  # what the study says of their numbers, and of the paper's
    metrics: tuple[MetricInfo, ...]
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    readings: tuple[ArmReading, ...]
    contamination: tuple[TaskContamination, ...]
    costs: Costs
    graph: tuple[GraphNode, ...]
    missing: tuple[Missing, ...]
    differences: tuple[str, ...]  # beside `varies`, knowingly: the study's confounds, in words
    provenance: Provenance
