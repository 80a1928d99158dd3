"""`results.json`: what an evaluation found, in the one form that tables, comparisons and reports read.

An evaluation is the folder `evaluations/NAME/` of a stage:

    results.json         written last: its presence means finished
    samples.jsonl.zst    a line for each item, or for each sample of an item, of all tasks (`kept_items.py`)
    asked.json           what was asked of which checkpoint; another question needs another NAME

docs/reference/results.md explains every field.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data_tools.atomic_files import write_atomically
from data_tools.errors import DataError
from megatron_ext.evaluate.options import Options

SCHEMA_VERSION = 1
RESULTS = "results.json"
ITEMS = "samples.jsonl.zst"
ASKED = "asked.json"

METRIC_UNITS = {"loss": "nats per token", "bits_per_byte": "bits per byte"}
"""Of metrics of texts, by name; all others are shares of right answers, or are as their tasks say."""


class Part(BaseModel):
    """A frozen part of the results."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckpointIdentity(Part):
    """Which weights were evaluated."""

    path: str
    stage_id: str
    stage: str
    recipe: str
    step: int
    is_finished: bool  # the stage has trained to its end, and this is its last checkpoint
    fingerprint: str  # sha256 over names and hashes of the files that hold weights: of these bytes, in this layout
    model: str
    parameters: int
    tokenizer_fingerprint: str
    consumed_tokens: int  # processed by the stage up to this step
    trained_tokens: int
    sampled_tokens: int
    parents: tuple[str, ...] = ()  # stages behind this one, oldest first


class EngineFacts(Part):
    """What computed the numbers."""

    name: str  # megatron_ext
    backend: str  # local or te
    dtype: str  # of weights and activations
    device: str
    world_size: int
    tensor_model_parallel_size: int
    versions: dict[str, str]


class Interval(Part):
    """Where the value may lie for other items, and other samples of them."""

    low: float
    high: float
    level: float = 0.95
    method: str  # wilson, student-t over items, bootstrap over items, …; in words


class Metric(Part):
    """One number of a task."""

    name: str  # loss, bits_per_byte, avg@4, pass@2, acc, acc_norm, exact_match, …
    value: float
    n: int  # items that it is a mean of; of a loss tokens
    interval: Interval | None = None
    is_higher_better: bool = True


class SamplingUsed(Part):
    """How answers were sampled."""

    samples: int  # of each item
    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()


def sampling_used(options: Options) -> SamplingUsed:
    """What was asked of answers."""
    return SamplingUsed(
        samples=options.samples,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        max_new_tokens=options.max_new_tokens,
    )


class SourceOverlap(Part):
    """What is known of one source that was trained on, and a benchmark."""

    source: str
    data_id: str
    report: str | None = None  # path; None: nobody has compared the two
    items: int | None = None  # of the benchmark that share more than the threshold with the source
    ngram: int | None = None  # words of the n-grams that were compared
    too_short: int = 0  # items of the benchmark's file with fewer words, looked for whole; those of no word are not


class Contamination(Part):
    """Whether items of a benchmark were trained on."""

    status: Literal["clean", "overlaps", "unknown", "not-applicable"]
    threshold: float | None = None  # share of an item's n-grams from which on it counts as overlapping
    items: int | None = None  # that overlap with any source; None where no report says
    sources: tuple[SourceOverlap, ...] = ()
    note: str = ""


class TaskResult(Part):
    """What one task found."""

    task: str  # as asked: held-out, verifiable:FILE, lm-eval:NAME; of parts of it KIND:…/PART
    kind: str
    name: str  # short, for tables; unique in the results
    domain: str = ""  # math, code, science, general, instruction; "" where none applies
    headline: str  # name of the metric that tables and aggregates take
    metrics: tuple[Metric, ...]
    items: int
    data: str = ""  # path, or name and version, of what was asked
    data_id: str = ""  # identity of its content
    method: str = ""  # how it was read and counted, in words
    sampling: SamplingUsed | None = None
    seed: int
    contamination: Contamination
    notes: tuple[str, ...] = ()  # what a reader must know: items left out, context exceeded, …
    details: dict[str, Any] = {}  # what only this kind has

    def metric(self, name: str | None = None) -> Metric:
        """The metric of a name; the headline without one.

        Raises:
            KeyError: There is none.
        """
        wanted = name or self.headline
        return next((m for m in self.metrics if m.name == wanted), None) or _no_metric(self, wanted)


def _no_metric(task: TaskResult, name: str) -> Metric:
    raise KeyError(f"{task.name}: no metric {name}; there are {', '.join(m.name for m in task.metrics)}")


class Aggregate(Part):
    """A number made of tasks, as a suite defines it."""

    name: str
    value: float | None  # None where a task of it is missing
    rule: str  # mean, …; in words
    of: tuple[str, ...]  # names of tasks or aggregates
    missing: tuple[str, ...] = ()


class Results(Part):
    """All of it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    created: str  # UTC, ISO 8601
    command: str
    seconds: float
    checkpoint: CheckpointIdentity
    engine: EngineFacts
    seed: int
    options: dict[str, Any]
    suite: str | None = None
    tasks: tuple[TaskResult, ...]
    aggregates: tuple[Aggregate, ...] = ()
    items_file: str = ITEMS  # beside results.json


def write_results(folder: Path, results: Results) -> Path:
    """Writes results.json; gives its path."""
    file = folder / RESULTS
    text = json.dumps(results.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(file, f"{text}\n".encode())
    return file


def read_results(path: Path) -> Results:
    """Reads results.json.

    Args:
        path: The file, or the folder of the evaluation.

    Raises:
        DataError: There is none, or it is damaged or of another version.
    """
    file = path / RESULTS if path.is_dir() else path
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        there = sorted(str(other.parent) for other in path.glob(f"**/evaluations/*/{RESULTS}"))[:5]
        remedy = f"name one of {', '.join(there)}" if there else "name a folder …/evaluations/NAME that has finished"
        raise DataError(f"{file}: {error.strerror}; {remedy}.") from None
    except ValueError as error:
        raise DataError(f"{file}: damaged ({error}); {evaluate_again(file.parent)}") from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{file}: schema_version: {version!r} is not {SCHEMA_VERSION}, the one read here.")
    try:
        return Results.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{file}: {where}: {first['msg']}; edited or damaged; {evaluate_again(file.parent)}") from None


def evaluate_again(folder: Path) -> str:
    """The way out where results or their items are damaged, for messages."""
    return f"remove the folder and evaluate again (of a study: study run does): rm -r {folder}"
