"""A lineage as an RO-Crate: `ro-crate-metadata.json` and the records that it names, copied beside it.

    DIR/ro-crate-metadata.json                    JSON-LD, RO-Crate 1.1 (w3id.org/ro/crate/1.1)
    DIR/lineage.json                              the lineage itself
    DIR/stages/ID/plan.json stage.json runs.jsonl ledger.json exports.jsonl
    DIR/stages/ID/evaluations/NAME/results.json
    DIR/sources/DATA_ID.manifest.json             a manifest of each pair, where its content is the one that was read

Weights, tokens and raw data are named with sizes and hashes and not copied: they are entities of the context
(`#checkpoint/…`, `#source/…`, `#input/…`), since files of a crate must lie in it. A stage is a `CreateAction`: its
instrument the code and packages of its runs, its objects what it read and began with, its result the checkpoint.
(Source: RO-Crate Metadata Specification 1.1, "Root Data Entity", "Data Entities", "Detailing provenance".)
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_tools.errors import UsageError
from data_tools.manifest import manifest_path
from megatron_ext.datasets.ledger import LEDGER
from megatron_ext.evaluate.results import RESULTS
from megatron_ext.plan.lineage import EXPORTS_FILE, RUNS_FILE, STAGE_FILE
from megatron_ext.study.lineage.record import Lineage, RunFacts, SourceFacts, StageFacts

CONTEXT = "https://w3id.org/ro/crate/1.1/context"
PROFILE = "https://w3id.org/ro/crate/1.1"
METADATA = "ro-crate-metadata.json"

Entity = dict[str, Any]


def write_crate(lineage: Lineage, to: Path) -> Path:
    """Makes the folder; gives the metadata's path.

    Raises:
        UsageError: The folder is there already.
    """
    if to.exists():
        raise UsageError(f"{to}: is there already; nothing is overwritten. Remove it, or name another folder.")
    writing = to.with_name(f".writing_{to.name}")
    shutil.rmtree(writing, ignore_errors=True)  # of a killed command
    writing.mkdir(parents=True)
    (writing / "lineage.json").write_text(lineage.model_dump_json(indent=1) + "\n", encoding="utf-8")
    crate = _Crate(writing)
    crate.add_file("lineage.json", "From the checkpoint back to its sources")
    for before, stage in zip((None, *lineage.stages), lineage.stages, strict=False):
        crate.add_stage(stage, before)
    text = json.dumps(crate.document(lineage), indent=1, ensure_ascii=False) + "\n"
    (writing / METADATA).write_text(text, encoding="utf-8")
    writing.rename(to)
    return to / METADATA


class _Crate:
    """The entities, each once, and the files that were copied."""

    def __init__(self, to: Path) -> None:
        self._to = to
        self._entities: dict[str, Entity] = {}
        self._files: list[str] = []
        self._actions: list[str] = []

    def document(self, lineage: Lineage) -> Entity:
        last = lineage.last
        terms = sorted({f"{s.source}: {s.licence or 'not known'}" for stage in lineage.stages for s in stage.sources})
        licence = self._add("#terms", "CreativeWork", name="Terms of the sources", description="; ".join(terms))
        root: Entity = {
            "@id": "./",
            "@type": "Dataset",
            "name": f"Lineage of {last.stage_id}",
            "description": "Not known: " + "; ".join(lineage.unknown) if lineage.unknown else "All of it is known.",
            "datePublished": datetime.now(UTC).isoformat(timespec="seconds"),
            "license": licence,
            "hasPart": _ids(self._files),
            "mentions": _ids(self._actions),
        }
        if last.checkpoint is not None:
            root["mainEntity"] = {"@id": _checkpoint_id(last)}
        descriptor = {"@id": METADATA, "@type": "CreativeWork", "conformsTo": {"@id": PROFILE}, "about": {"@id": "./"}}
        return {"@context": CONTEXT, "@graph": [descriptor, root, *self._entities.values()]}

    def add_file(self, name: str, said: str, *, of: Path | None = None) -> Entity | None:
        """A file of the crate, copied where it lies elsewhere; None where there is none."""
        target = self._to / name
        if of is not None:
            if not of.is_file():
                return None
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(of, target)
        content = target.read_bytes()
        self._files.append(name)
        return self._add(
            name,
            "File",
            name=said,
            contentSize=str(len(content)),
            encodingFormat=mimetypes.guess_type(name)[0] or "application/jsonl",
            identifier=f"sha256:{hashlib.sha256(content).hexdigest()}",
        )

    def add_stage(self, stage: StageFacts, before: StageFacts | None) -> None:
        """A stage as the action that made its checkpoint, with everything that went into it."""
        records = [self._record(stage, name) for name in ("plan.json", STAGE_FILE, RUNS_FILE, EXPORTS_FILE)]
        objects = [self._source(source) for source in stage.sources]
        if before is not None:
            objects.append(self._checkpoint(before))
        if stage.tokenizer is not None:
            objects.append(self._tokenizer(stage))
        action: Entity = {"object": [*objects, *(record for record in records if record)]}
        if stage.checkpoint is not None:
            ledger = self.add_file(
                f"stages/{stage.stage_id}/{LEDGER}", "What it has read", of=Path(stage.checkpoint.path) / LEDGER
            )
            action["result"] = [self._checkpoint(stage), *([ledger] if ledger else [])]
        if stage.runs:
            action["instrument"] = _unique(part for run in stage.runs for part in self._software(run))
            action["startTime"] = stage.runs[0].started
        if stage.is_finished:
            action["actionStatus"] = {"@id": "http://schema.org/CompletedActionStatus"}
        self._action(f"#train/{stage.stage_id}", f"Training of {stage.stage_id} ({stage.recipe})", action)
        self._add_evaluations(stage)

    def _add_evaluations(self, stage: StageFacts) -> None:
        for evaluation in stage.evaluations:
            name = f"stages/{stage.stage_id}/evaluations/{Path(evaluation.folder).name}/{RESULTS}"
            results = self.add_file(name, f"Results of {evaluation.name}", of=Path(evaluation.folder) / RESULTS)
            judged = self._checkpoint(stage, step=evaluation.step)
            action = {"object": judged, "result": results, "endTime": evaluation.created}
            self._action(f"#evaluate/{stage.stage_id}/{evaluation.name}", f"Evaluation {evaluation.name}", action)

    def _record(self, stage: StageFacts, name: str) -> Entity | None:
        if stage.folder is None:
            return None
        of = Path(stage.folder) / name
        return self.add_file(f"stages/{stage.stage_id}/{name}", f"{name} of {stage.stage_id}", of=of)

    def _checkpoint(self, stage: StageFacts, step: int | None = None) -> Entity:
        facts = stage.checkpoint
        if facts is None or (step is not None and step != facts.step):
            at = "its end" if step is None else f"step {step}"
            entity_id = f"#checkpoint/{stage.stage_id}/{at.replace(' ', '_')}"
            return self._add(entity_id, "CreativeWork", name=f"{stage.stage_id} at {at}")
        return self._add(
            _checkpoint_id(stage),
            "CreativeWork",
            name=f"{stage.stage_id} at step {facts.step}",
            identifier=f"sha256:{facts.weights}",
            contentSize=str(facts.bytes),
        )

    def _tokenizer(self, stage: StageFacts) -> Entity:
        assert stage.tokenizer is not None, "asked for a tokenizer that is not known"
        made_of = stage.tokenizer.fingerprint
        return self._add(f"#tokenizer/{made_of}", "CreativeWork", name="Tokenizer", identifier=f"sha256:{made_of}")

    def _source(self, source: SourceFacts) -> Entity:
        terms = {"license": source.licence, "version": source.revision, "description": source.available_at}
        entity = self._add(
            f"#source/{source.data_id}",
            "CreativeWork",
            name=source.source,
            identifier=f"sha256:{source.data_id}",
            **{name: said for name, said in terms.items() if said},
        )
        for dataset in source.datasets:
            name = f"sources/{dataset.data_id}.manifest.json"
            manifest = self.add_file(name, f"Manifest of {source.source}", of=manifest_path(dataset.prefix))
            inputs = [
                self._add(
                    f"#input/{file.sha256}",
                    "CreativeWork",
                    name=Path(file.path).name,
                    identifier=f"sha256:{file.sha256}",
                    contentSize=str(file.bytes),
                )
                for file in dataset.inputs
            ]
            action = {"object": inputs, "result": [entity, manifest], "endTime": dataset.created}
            self._action(f"#tokenize/{dataset.data_id}", f"Tokenization of {source.source}", action)
        return entity

    def _software(self, run: RunFacts) -> Iterable[Entity]:
        code = run.code
        commit = f", commit {code.commit}" if code.commit else ""
        changed = f", {len(code.changed)} files changed since" if code.changed else ""
        yield self._add(
            f"#code/{code.sha256}",
            "SoftwareApplication",
            name="megatron_ext",
            softwareVersion=f"{code.version or 'version not known'}{commit}{changed}",
            identifier=f"sha256:{code.sha256}",
        )
        for name, version in run.versions.items():
            yield self._add(f"#package/{name}-{version}", "SoftwareApplication", name=name, softwareVersion=version)

    def _action(self, name: str, said: str, parts: Entity) -> None:
        if name not in self._entities:
            self._actions.append(name)
            self._add(name, "CreateAction", **({"name": said} | parts))

    def _add(self, entity_id: str, kind: str, /, **parts: Any) -> Entity:
        """Keeps an entity; gives the reference to it."""
        self._entities.setdefault(entity_id, {"@id": entity_id, "@type": kind} | parts)
        return {"@id": entity_id}


def _checkpoint_id(stage: StageFacts) -> str:
    assert stage.checkpoint is not None, "asked for a checkpoint that is not known"
    return f"#checkpoint/{stage.stage_id}/step_{stage.checkpoint.step}"


def _ids(names: Iterable[str]) -> list[Entity]:
    return [{"@id": name} for name in names]


def _unique(references: Iterable[Entity]) -> list[Entity]:
    return _ids(dict.fromkeys(reference["@id"] for reference in references))
