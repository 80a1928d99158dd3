"""Whether a job was finished before: its settings, manifest, files and inputs, without loading a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_tools.atomic_files import beside
from data_tools.errors import DataError
from data_tools.file_state import changes_of
from data_tools.job import DatasetJob
from data_tools.manifest import READER_VERSION, Manifest, check_files, manifest_path, read_manifest
from data_tools.max_bad import parse_max_bad
from data_tools.parts import Part
from data_tools.tokenizer import fingerprint


def finished_before(job: DatasetJob, parts: Sequence[Part]) -> list[Manifest]:
    """The manifests of the job's datasets if they are of this very job; none if it is not finished.

    Args:
        job: What is asked for.
        parts: Of its inputs.

    Raises:
        DataError: If PREFIX holds something else, is damaged, or has more bad records than the job allows.
    """
    if not manifest_path(job.output).exists():
        was_interrupted = beside(manifest_path(job.output), ".partial").exists()
        there = [str(path) for prefix in job.outputs for path in files_of(job, prefix) if path.exists()]
        if there and not was_interrupted:
            raise DataError(
                f"{job.output}: {' and '.join(there)} without a manifest; give --overwrite, or another --output"
            )
        return []
    manifests = [read_manifest(job.output)]
    if differences := _differences(job, parts, manifests[0]):
        raise DataError(
            f"{job.output}: holds another dataset; give --overwrite, or another --output\n  " + "\n  ".join(differences)
        )
    manifests += [read_manifest(prefix) for prefix in job.outputs[1:]]
    for prefix, manifest in zip(job.outputs, manifests, strict=True):
        check_files(prefix, manifest)
        if manifest.sources != manifests[0].sources:
            raise DataError(f"{prefix}: is not what {job.output} holds out; give --overwrite, or another --output")
    _refuse_too_many_bad(job, manifests)
    return manifests


def _refuse_too_many_bad(job: DatasetJob, manifests: Sequence[Manifest]) -> None:
    bad = manifests[0].rejected
    records = bad + sum(manifest.documents + manifest.left_out for manifest in manifests)
    if not parse_max_bad(job.max_bad).allows(bad, of=records):
        raise DataError(
            f"{job.output}: was finished with {bad:,} of {records:,} records bad, more than --max-bad {job.max_bad}; "
            "raise it, or mend the input"
        )


def files_of(job: DatasetJob, prefix: Path) -> list[Path]:
    """The files of one of its datasets, the manifest left out."""
    return [beside(prefix, suffix) for suffix in job.suffixes]


def _differences(job: DatasetJob, parts: Sequence[Part], manifest: Manifest) -> list[str]:
    """What would make this job's dataset another one, a line each."""
    had, asked_for = job.settings_of(manifest), job.settings
    pairs: list[tuple[str, object, object]] = [
        ("--tokenizer (fingerprint)", manifest.tokenizer.fingerprint, fingerprint(job.tokenizer)),
        *((_option(name), _said(name, had[name]), _said(name, asked_for[name])) for name in asked_for),
        ("reader version", manifest.versions.get("reader"), READER_VERSION),
        ("number of --input files", len(manifest.sources), len(parts)),
    ]
    if manifest.rejected and job.on_error == "fail":
        pairs.append(("--on-error", f"skip, with {manifest.rejected:,} lines rejected", "fail"))
    for part, source in zip(parts, manifest.sources, strict=False):
        if (changes := changes_of(part, source)) and source.path != str(part.file.path):
            pairs.append(("--input", source.path, part.file.path))
        pairs += changes
    return [f"{name}: it has {there}, asked for {asked}" for name, there, asked in pairs if there != asked]


def _option(setting: str) -> str:
    no_option = {
        "template_tokens": "tokens of tokenizer_config.json in the chat template",
        "version": "version of chat",
    }
    return no_option.get(setting) or "--" + setting.removesuffix("_percent").replace("_", "-")


def _said(setting: str, value: object) -> object:
    nothing = {"where": "all", "answer_rule": "none", "compat": "none", "key": "none"}
    return f"{value:g}%" if setting.endswith("_percent") else value or nothing.get(setting, value)
