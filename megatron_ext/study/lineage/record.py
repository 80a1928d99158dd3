"""A lineage as data: what `megatron-ext lineage --json` prints, field by field in docs/reference/lineage.md.

None means not known, never zero; `unknown` of the whole says in sentences what is not known and why.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

State = Literal["as read", "replaced", "not found", "damaged"]


class LineagePart(BaseModel):
    """A frozen part of a lineage."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileFact(LineagePart):
    """One file, as it was when it was read or written."""

    path: str
    bytes: int
    sha256: str


class CodeFacts(LineagePart):
    """`runtime/code_version.py`."""

    version: str | None
    sha256: str
    files: int
    commit: str | None
    changed: tuple[str, ...] | None


class WeightsTaken(LineagePart):
    """The checkpoint that a run took up."""

    stage_id: str
    checkpoint: str
    weights: str


class RunFacts(LineagePart):
    """One line of `runs.jsonl`."""

    started: str
    begins_at_step: int
    begins_from: WeightsTaken | None
    code: CodeFacts
    versions: dict[str, str]
    hardware: dict[str, Any]
    layout: dict[str, int | bool]
    backend: str


class InputFile(FileFact):
    """A file that a dataset was made of."""

    start: int = 0  # first byte that was read of it
    documents: int | None = None  # of the dataset that came from it, by `.origin`; None where there is none


class DatasetFacts(LineagePart):
    """One tokenised pair, as its manifest says."""

    prefix: str
    data_id: str
    documents: int
    tokens: int
    bin_sha256: str
    idx_sha256: str
    origin_sha256: str | None
    mask_sha256: str | None
    adapter: str
    where: str
    answer_rule: str
    special_tokens: str
    chat_template_sha256: str | None
    tokenizer_fingerprint: str
    engine: str | None  # name and version
    versions: dict[str, str]
    command: str
    created: str
    parts: tuple[str, ...]  # data ids of what it was merged of
    inputs: tuple[InputFile, ...]


class SourceFacts(LineagePart):
    """One source of one stage: terms and place as its source file said, content as its manifests say."""

    source: str
    domain: str
    data_id: str
    prefix: str
    licence: str | None  # None: the plan is older than the field; "": the source file does not state it
    revision: str | None
    available_at: str | None
    tokens: int
    documents: int
    planned_tokens: int
    read_tokens: int | None  # processed, by this stage up to the checkpoint
    trained_tokens: int | None
    sampled_tokens: int | None
    epochs: float | None
    first_tokens: int | None  # read for the first time in the chain
    repeated_tokens: int | None
    file_sha256: str = ""  # of a file of prompts
    state: State
    note: str = ""
    datasets: tuple[DatasetFacts, ...] = ()  # () unless the state is "as read"


class TokenizerFacts(LineagePart):
    """What made ids of text."""

    folder: str
    fingerprint: str
    vocab_size: int
    chat_template_sha256: str | None = None


class CheckpointFacts(LineagePart):
    """One checkpoint of a stage: the last one, or the one that was asked for."""

    path: str
    step: int
    is_last: bool | None  # of a finished stage; None where the stage is not finished
    weights: str  # fingerprint
    bytes: int
    backend: str
    processed_tokens: int
    trained_tokens: int
    sampled_tokens: int
    plan_sha256: str
    files: dict[str, FileFact]


class TaskFacts(LineagePart):
    """The headline of one task."""

    task: str
    name: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    data_id: str
    contamination: str
    contamination_note: str


class EvaluationFacts(LineagePart):
    """One finished evaluation of a stage."""

    folder: str
    name: str
    suite: str | None
    created: str
    step: int
    is_of_this_checkpoint: bool | None  # by the fingerprint of its weights; None where there is no checkpoint here
    tasks: tuple[TaskFacts, ...]


class ExportFacts(LineagePart):
    """One line of `exports.jsonl`."""

    created: str
    step: int
    to: str
    dtype: str
    weights: str
    difference: float | None


class StageFacts(LineagePart):
    """One stage of the chain."""

    stage_id: str
    stage: str
    recipe: str
    gives: Literal["everything", "weights"] | None  # to the stage after it; None of the last one
    planned_steps: int
    planned_tokens: int
    folder: str | None  # None: not in this run root, and what stands below is not known
    is_finished: bool | None = None
    meaning: dict[str, Any] | None = None
    meaning_sha256: str | None = None
    is_id_of_meaning: bool | None = None
    model: str | None = None
    parameters: int | None = None
    precision: str | None = None
    seed: int | None = None
    layout: dict[str, Any] | None = None  # as last planned
    tokenizer: TokenizerFacts | None = None
    checkpoint: CheckpointFacts | None = None
    runs: tuple[RunFacts, ...] = ()
    sources: tuple[SourceFacts, ...] = ()
    evaluations: tuple[EvaluationFacts, ...] = ()
    exports: tuple[ExportFacts, ...] = ()


class Check(LineagePart):
    """One thing that `--verify` looked at."""

    what: str
    path: str
    damage: tuple[str, ...]  # () where it is as it was


class Lineage(LineagePart):
    """From one checkpoint back to all that it was made of."""

    schema_version: Literal[1] = 1
    asked: str
    checkpoint: str
    stages: tuple[StageFacts, ...]  # oldest first
    unknown: tuple[str, ...]
    checks: tuple[Check, ...] | None = None  # None: nothing was verified

    @property
    def last(self) -> StageFacts:
        """The stage of the checkpoint."""
        return self.stages[-1]
