"""Whether what a lineage names is still as it was written: every byte of checkpoints and datasets is read.

| what | compared with |
|---|---|
| each stage's meaning | the id that is made of it, which the next stage's meaning names |
| each checkpoint's files | its `files.json` |
| each source's datasets | the data id of the plan; every claim of their manifests, hashes too |
| their input files | the hashes in the manifests; those that are gone are said, and are no damage |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from data_tools.errors import DataError
from data_tools.verify import verify
from megatron_ext.study.lineage.record import Check, DatasetFacts, InputFile, Lineage, SourceFacts, StageFacts
from megatron_ext.training.file_list import damage_of

_BLOCK = 1 << 22


def verified(lineage: Lineage) -> Lineage:
    """The lineage with its `checks`, and sentences on inputs that are gone."""
    unknown: list[str] = []
    checks: dict[tuple[str, str], Check] = {}
    for stage in lineage.stages:
        for check in (*_of_stage(stage), *_of_sources(stage, unknown)):
            checks.setdefault((check.what, check.path), check)  # stages share sources
    known = (*lineage.unknown, *dict.fromkeys(unknown))
    return lineage.model_copy(update={"checks": tuple(checks.values()), "unknown": known})


def _of_stage(stage: StageFacts) -> Iterator[Check]:
    if stage.is_id_of_meaning is not None:
        wrong = () if stage.is_id_of_meaning else (f"the meaning in plan.json is not that of {stage.stage_id}",)
        yield Check(what="id", path=stage.stage_id, damage=wrong)
    if stage.checkpoint is not None:
        path = stage.checkpoint.path
        yield Check(what="checkpoint", path=path, damage=tuple(damage_of(Path(path))))


def _of_sources(stage: StageFacts, unknown: list[str]) -> Iterator[Check]:
    for source in stage.sources:
        if source.state != "as read" or not source.datasets:
            yield _source_check(source)
        for dataset in source.datasets:
            yield Check(what="dataset", path=dataset.prefix, damage=_damage(dataset))
            for file in dataset.inputs:
                if not Path(file.path).is_file():
                    unknown.append(f"{file.path}: gone or elsewhere: what {dataset.prefix} was made of is not verified")
                    continue
                yield Check(what="input", path=file.path, damage=_damage_of_input(file))


def _source_check(source: SourceFacts) -> Check:
    """Of data that are not as they were read, and of files of prompts, which were hashed when they were looked at."""
    return Check(what="source", path=source.prefix, damage=() if source.state == "as read" else (source.note,))


def _damage(dataset: DatasetFacts) -> tuple[str, ...]:
    try:
        verify(Path(dataset.prefix), deep=True)
    except DataError as error:
        return (str(error),)
    return ()


def _damage_of_input(file: InputFile) -> tuple[str, ...]:
    digest, left = hashlib.sha256(), file.bytes
    with Path(file.path).open("rb") as opened:
        opened.seek(file.start)
        while left and (block := opened.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
    if left or digest.hexdigest() != file.sha256:
        return (f"its content is not the one that was tokenized (sha256 {file.sha256[:12]})",)
    return ()
