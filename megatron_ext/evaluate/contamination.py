"""Whether the items of a benchmark stand in what a checkpoint was trained on. Imports no torch.

What was trained on is what the ledger says, of all stages behind the checkpoint. Each source is known by the hashes of
the files that its dataset was made of; a report of `data-tools overlap` counts for it if the report compared all of
them with the benchmark, known by its hash too. What no report covers is unknown, never clean.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.dataset import find_dataset
from data_tools.errors import DataError, UserError
from megatron_ext.datasets.ledger import PADDING, read_ledger
from megatron_ext.evaluate.options import Options
from megatron_ext.evaluate.results import Contamination, SourceOverlap
from megatron_ext.evaluate.tasks import TaskRequest
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.file_list import read_plan

_REPORTS_BESIDE = "*.overlap.jsonl"


@dataclass(frozen=True)
class Benchmark:
    """Items that must not have been trained on.

    Attributes:
        name: Of their file, for people.
        sha256: Of the file that a report must have read; "" where none is looked for.
        ids: Of the items, as the adapter gives them.
        adapter: That a report must have read the file with, so that its ids are these.
        how: The commands that make a report; "" where nothing can.
        copies: Items that are trained on with a file as it is, by the hash of the file.
        reports: Folder of the benchmark, where reports may lie; None: only named ones count.
        apart_from: Content of sources that are known to hold none of the items.
    """

    name: str
    sha256: str
    ids: frozenset[str]
    adapter: str
    how: str
    copies: Mapping[str, frozenset[str]]
    reports: Path | None = None
    apart_from: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TrainedSource:
    """One source that was read.

    Attributes:
        name: Of the source.
        data_id: Of its content.
        files: Hashes of the files that it was made of; () where its dataset is gone or another one.
    """

    name: str
    data_id: str
    files: frozenset[str] = frozenset()


@dataclass
class _Pair:
    """Two corpora that a report has compared."""

    report: str
    ngram: int
    sides: tuple[dict[str, Any], dict[str, Any]]
    hits: list[dict[str, Any]] = field(default_factory=list)


def contamination_of(benchmark: Benchmark, checkpoint: Path, options: Options) -> Contamination:
    """What is known of a benchmark and a checkpoint.

    Args:
        benchmark: Its items.
        checkpoint: A `step_N` folder.
        options: Name reports, and the share of an item's n-grams from which on it overlaps.

    Raises:
        DataError: A report that was named is no report.
    """
    named = [Path(path) for path in options.overlap]
    beside = sorted(set(benchmark.reports.glob(_REPORTS_BESIDE)) - set(named)) if benchmark.reports is not None else []
    pairs = [pair for path in [*named, *beside] for pair in _read_report(path)]
    overlapping: set[str] = set()
    found = []
    for source in trained_sources(checkpoint):
        if source.data_id in benchmark.apart_from:
            found.append(SourceOverlap(source=source.name, data_id=source.data_id, items=0))
            continue
        items, known = _overlap_with(source, benchmark, pairs, options)
        overlapping |= items
        found.append(known)
    return _judged(benchmark, found, overlapping, options)


def _overlap_with(
    source: TrainedSource, benchmark: Benchmark, pairs: Sequence[_Pair], options: Options
) -> tuple[set[str], SourceOverlap]:
    """The items that a source holds, and what is known of the two."""
    items = {item for sha256, ids in benchmark.copies.items() if sha256 in source.files for item in ids}
    fitting = [(pair, *sides) for pair in pairs if (sides := _sides(pair, benchmark, options)) is not None]
    covering = [one for one in fitting if not source.files.isdisjoint(_hashes(one[2]))]
    covered = {sha256 for _, _, other in covering for sha256 in _hashes(other)}
    known = SourceOverlap(source=source.name, data_id=source.data_id, items=len(items) or None)
    if not source.files or not source.files <= covered:
        return items, known
    for pair, _, other in covering:
        items |= _hits(pair, other, benchmark, options.contamination_share)
    said = {
        "report": ", ".join(dict.fromkeys(pair.report for pair, _, _ in covering)),
        "items": len(items),
        "ngram": max(pair.ngram for pair, _, _ in covering),
        "too_short": max(ours["too_short"] for _, ours, _ in covering),
    }
    return items, known.model_copy(update=said)


def require_clean(request: TaskRequest, found: Contamination, num_items: int) -> None:
    """Refuses a benchmark that was trained on, unless it is to be marked.

    Raises:
        DataError: More of its items overlap than may.
    """
    options, items = request.options, found.items or 0
    if options.contaminated == "mark" or items <= options.contamination_items * num_items:
        return
    raise DataError(
        f"{request.task}: {found.note}.\n"
        "  What it would measure is memory. Take other items; or have the results marked: --contaminated mark, or in "
        "the suite's file options: {contaminated: mark}."
    )


def trained_sources(checkpoint: Path) -> list[TrainedSource]:
    """The sources that a checkpoint and the stages behind it have read, by its ledger.

    What an imported model has read stands there as one source, without a count or files.
    """
    rows = [row for row in read_ledger(checkpoint) if row.data_id != PADDING]
    read = {row.data_id: row.source for row in rows if row.read or not row.planned}
    files = _files_by_data_id(checkpoint)
    return [TrainedSource(name, data_id, files.get(data_id, frozenset())) for data_id, name in read.items()]


def _files_by_data_id(checkpoint: Path) -> dict[str, frozenset[str]]:
    """Hashes of the files behind each source of the chain, where plans and datasets are still there."""
    plan = read_plan(checkpoint)
    stages = checkpoint.parents[2]
    behind = [stage.stage_id for stage in plan.behind.chain] if plan.behind is not None else []
    plans = [plan]
    for file in (stages / stage / "plan.json" for stage in behind):
        if file.is_file():
            plans.append(StagePlan.model_validate_json(file.read_bytes()))
    return {data_id: files for one in plans for data_id, files in files_of_sources(one)}


def files_of_sources(plan: StagePlan) -> Iterable[tuple[str, frozenset[str]]]:
    """The content of each source of a stage with the hashes of the files that it was made of, where they are known."""
    if plan.rl is not None:
        for of_rl, source in zip(plan.rl.sources, plan.data.sources, strict=True):
            yield source.data_id, frozenset({of_rl.file_sha256} - {""})
        return
    for source in plan.data.sources:
        try:
            dataset = find_dataset(source.prefix)
        except UserError:  # damaged: as good as gone
            continue
        if dataset is not None and dataset.data_id == source.data_id:
            manifests = [shard.manifest for shard in dataset.shards]
            yield source.data_id, frozenset(file.sha256 for manifest in manifests for file in manifest.sources)


@functools.lru_cache(maxsize=32)
def _read_report(path: Path) -> tuple[_Pair, ...]:
    pairs: list[_Pair] = []
    try:
        for line in map(json.loads, path.read_bytes().splitlines()):
            if "pair" in line:
                pairs.append(_Pair(str(path), int(line["n"]), tuple(line["pair"])))
                _ = line["within"]  # of reports of before it, short documents were found as exact copies alone
            else:
                pairs[-1].hits.append(line)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a report of data-tools overlap --out.") from None
    except (ValueError, IndexError, KeyError, TypeError):
        raise DataError(
            f"{path}: does not say what was compared, or is older than the search for short documents; make it anew: "
            "data-tools overlap --out."
        ) from None
    return tuple(pairs)


def _sides(pair: _Pair, benchmark: Benchmark, options: Options) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The benchmark's side and the other; None where the pair has another benchmark, other ids, or too long n-grams."""
    if pair.ngram > options.contamination_ngram:
        return None
    for ours, other in (pair.sides, tuple(reversed(pair.sides))):
        if any(file["sha256"] == benchmark.sha256 and file["adapter"] == benchmark.adapter for file in ours["files"]):
            return ours, other
    return None


def _hashes(side: dict[str, Any]) -> set[str]:
    return {file["sha256"] for file in side["files"]}


def _hits(pair: _Pair, other: dict[str, Any], benchmark: Benchmark, share: float) -> set[str]:
    """Ids of the benchmark's items that overlap with the other side."""
    return {
        hit["id"]
        for hit in pair.hits
        if hit["against"] == other["name"] and (hit["duplicate"] or hit["within"] or hit["share"] >= share)
    } & benchmark.ids


def _judged(
    benchmark: Benchmark, sources: Sequence[SourceOverlap], overlapping: set[str], options: Options
) -> Contamination:
    unknown = [source.source for source in sources if source.items is None]
    touched = [f"{source.source} ({source.items:,})" for source in sources if source.items]
    said = []
    if touched:
        said.append(
            f"{len(overlapping):,} of {len(benchmark.ids):,} items overlap with what was trained on: "
            f"{', '.join(touched)}"
        )
    if unknown:
        made = f": {benchmark.how} makes one" if benchmark.how else ""
        said.append(f"no overlap report compares {benchmark.name} with {', '.join(unknown)}{made}")
    return Contamination(
        status="overlaps" if overlapping else "unknown" if unknown else "clean",
        threshold=options.contamination_share,
        items=None if unknown and not overlapping else len(overlapping),
        sources=tuple(sources),
        note="; ".join(said),
    )
