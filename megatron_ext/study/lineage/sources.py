"""What is known of the sources of a stage: terms from its plan, amounts from its ledger, content from manifests.

A manifest speaks for a source only while its content is the one that was read: of data that were replaced since, or
are gone, no word is taken from what lies in their place now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_tools.atomic_files import beside
from data_tools.dataset import Shard, find_dataset
from data_tools.errors import DataError
from data_tools.manifest import Manifest
from data_tools.origin import ORIGIN
from megatron_ext.datasets.ledger import LedgerRow, sum_rows
from megatron_ext.plan.stage_plan import RlSource, SourcePlan, StagePlan
from megatron_ext.study.lineage.record import DatasetFacts, InputFile, SourceFacts, State

_MOST_ORIGIN_BYTES = 1 << 27
"""Above it (5.6M documents) the documents of each input file are not counted: it would take seconds a source."""


def sources_of(plan: StagePlan, ledger: Sequence[LedgerRow] | None, unknown: list[str]) -> tuple[SourceFacts, ...]:
    """The sources of a stage.

    Args:
        plan: Of the stage.
        ledger: Of the checkpoint; None where it cannot be read.
        unknown: Takes a sentence for everything that is not known.
    """
    prompts = {source.source: source for source in plan.rl.sources} if plan.rl is not None else {}
    return tuple(_source(plan, source, prompts.get(source.source), ledger, unknown) for source in plan.data.sources)


def _source(
    plan: StagePlan,
    source: SourcePlan,
    prompts: RlSource | None,
    ledger: Sequence[LedgerRow] | None,
    unknown: list[str],
) -> SourceFacts:
    state, note, shards = _file_state(source, prompts) if prompts is not None else _dataset_state(source)
    who = f"{plan.stage_id}: source {source.source}"
    if state != "as read":
        unknown.append(f"{who}: {note}: how its content was made is not known here")
    datasets = tuple(_dataset(shard) for shard in shards)
    if any(not one.inputs for one in datasets):
        unknown.append(f"{who}: its manifest names no input files")
    terms = {name: _term(source, name) for name in ("licence", "revision", "available_at")}
    for said, value in (("not recorded", None), ("not stated", "")):
        if names := [name for name, term in terms.items() if term == value]:
            unknown.append(f"{who}: {said}: {', '.join(names)}")
    rows = [row for row in ledger or () if row.phase and row.data_id == source.data_id]
    read = sum_rows(rows) if rows else None
    return SourceFacts(
        source=source.source,
        domain=source.domain,
        data_id=source.data_id,
        prefix=source.prefix,
        **terms,
        tokens=source.tokens,
        documents=source.documents,
        planned_tokens=source.samples * plan.batch.sequence_length,
        read_tokens=read.read if read else None,
        trained_tokens=read.trained if read else None,
        sampled_tokens=read.sampled if read else None,
        epochs=read.epochs if read else None,
        first_tokens=read.first if read else None,
        repeated_tokens=read.repeated if read else None,
        file_sha256=prompts.file_sha256 if prompts is not None else "",
        state=state,
        note=note,
        datasets=datasets,
    )


def _term(source: SourcePlan, name: str) -> str | None:
    """What the source file stated; None where the plan is older than the field."""
    return str(getattr(source, name)) if name in source.model_fields_set else None


def _dataset_state(source: SourcePlan) -> tuple[State, str, tuple[Shard, ...]]:
    try:
        found = find_dataset(source.prefix)
    except DataError as error:
        return "damaged", str(error), ()
    if found is None:
        return "not found", f"no dataset at {source.prefix} (relative paths begin at the working directory)", ()
    if found.data_id != source.data_id:
        held = f"{source.prefix} held {source.data_id[:12]} and holds {found.data_id[:12]} now"
        return "replaced", f"replaced since: {held}", ()
    return "as read", "", found.shards


def _file_state(source: SourcePlan, prompts: RlSource) -> tuple[State, str, tuple[Shard, ...]]:
    """Of a file of prompts; its bytes are hashed, as the plan did."""
    file = Path(source.prefix)
    if not file.is_file():
        return "not found", f"no file {file} (relative paths begin at the working directory)", ()
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != prompts.file_sha256:
        return "replaced", f"replaced since: {file} held {prompts.file_sha256[:12]} and holds {found[:12]} now", ()
    return "as read", "", ()


def _dataset(shard: Shard) -> DatasetFacts:
    manifest = shard.manifest
    return DatasetFacts(
        prefix=shard.prefix,
        data_id=manifest.data_id,
        documents=manifest.documents,
        tokens=manifest.tokens,
        bin_sha256=manifest.bin_sha256,
        idx_sha256=manifest.idx_sha256,
        origin_sha256=manifest.origin_sha256,
        mask_sha256=manifest.chat.mask_sha256 if manifest.chat else None,
        adapter=manifest.adapter,
        where=manifest.where,
        answer_rule=manifest.answer_rule,
        special_tokens=manifest.special_tokens,
        chat_template_sha256=manifest.chat.template_sha256 if manifest.chat else None,
        tokenizer_fingerprint=manifest.tokenizer.fingerprint,
        engine=f"{manifest.engine.name} {manifest.engine.version}" if manifest.engine else None,
        versions=manifest.versions,
        command=manifest.command,
        created=manifest.created,
        parts=tuple(manifest.parts),
        inputs=_inputs(shard.prefix, manifest),
    )


def _inputs(prefix: str, manifest: Manifest) -> tuple[InputFile, ...]:
    counts = _documents_of_inputs(prefix, manifest)
    return tuple(
        InputFile(
            path=file.path,
            bytes=file.bytes,
            sha256=file.sha256,
            start=file.start,
            documents=counts[number] if counts is not None else None,
        )
        for number, file in enumerate(manifest.sources)
    )


def _documents_of_inputs(prefix: str, manifest: Manifest) -> list[int] | None:
    """How many documents came from each input file; None where no `.origin` says it, or it is a large one."""
    if not manifest.origin_bytes or manifest.origin_bytes > _MOST_ORIGIN_BYTES:
        return None
    numbers = np.fromfile(beside(prefix, ".origin"), ORIGIN)["source"]
    counts: list[int] = np.bincount(numbers, minlength=len(manifest.sources)).tolist()
    return counts
