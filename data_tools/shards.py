"""One dataset as many shards: a frozen plan, tasks that share it, and what is done of it.

`PREFIX/plan.json` says which part of which file makes which shard; every task makes the same plan and
refuses another's. Shard 17 is `PREFIX/shard-00017.bin/.idx/.origin/.manifest.json`, its held-out documents
`PREFIX.validation/shard-00017…`. A shard is a dataset of its own: written whole or not at all, so a kill
costs the shard in work, and a second run writes what is missing.

plan.json, JSON:

| field          | meaning |
|----------------|---------|
| format_version | version of this table |
| shard_bytes    | bytes of input that a shard of plain JSONL has, up to the next line start |
| settings       | what else decides the tokens: tokenizer, adapter, key, … |
| files          | path, bytes and mtime_ns of each input file |
| shards         | file (number in `files`), start and end (null: of the file) of each shard |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from data_tools.atomic_files import beside, is_being_written, write_atomically
from data_tools.dataset import PLAN_FORMAT_VERSION, open_shard, read_plan, shard_prefix
from data_tools.errors import DataError, UsageError, UserError
from data_tools.formats import STDIN
from data_tools.inputs import find_inputs
from data_tools.job import DatasetJob
from data_tools.manifest import READER_VERSION, Manifest, manifest_path
from data_tools.parts import Part, parts_of_task, split_inputs
from data_tools.progress import Progress
from data_tools.tokenize import TokenizeResult, write_dataset
from data_tools.tokenizer import Tokenizer, fingerprint


@dataclass(frozen=True)
class Task:
    """Which of several processes this one is.

    Attributes:
        number: From 0.
        of: How many there are.
    """

    number: int = 0
    of: int = 1


def parse_task(written: str | None) -> Task:
    """Reads `3/8`; None: the task of a Slurm array that this process is, if it is one.

    >>> parse_task("3/8")
    Task(number=3, of=8)

    Raises:
        UsageError: If it is no pair of numbers.
    """
    if written is None:
        first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", 0))
        step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", 1))  # --array=0-14:2
        number = (int(os.environ.get("SLURM_ARRAY_TASK_ID", first)) - first) // step
        return Task(number, int(os.environ.get("SLURM_ARRAY_TASK_COUNT", 1)))
    number_of, _, of = written.partition("/")
    if not (number_of.isdigit() and of.isdigit()):
        raise UsageError(f"--task: {written!r} is not of the form i/n, as in 0/8")
    return Task(int(number_of), int(of))


@dataclass(frozen=True)
class ShardPlan:
    """The parts of the input, a shard each; the fields of the file are at the top."""

    fields: dict[str, Any]
    parts: tuple[Part, ...]


def make_plan(job: DatasetJob, *, shard_bytes: int) -> ShardPlan:
    """The plan of a job, from its inputs alone.

    Raises:
        UsageError: If the input is stdin, or rejects should go to one file.
        DataError: If an input or the tokenizer cannot be read.
    """
    job.check()
    if STDIN in job.inputs:
        raise UsageError("--shard-bytes: stdin cannot be cut into shards; name files")
    if job.rejects:
        raise UsageError("--rejects: each shard lists its own, PREFIX/shard-00000.rejects.jsonl; leave it out")
    if shard_bytes < 1:
        raise UsageError(f"--shard-bytes: {shard_bytes} is below 1")
    files = find_inputs(job.inputs).files
    parts = tuple(split_inputs(files, part_bytes=shard_bytes))
    numbers = {file.path: number for number, file in enumerate(files)}
    settings = {"tokenizer": fingerprint(job.tokenizer), "reader": READER_VERSION, **job.settings}
    fields = {
        "format_version": PLAN_FORMAT_VERSION,
        "shard_bytes": shard_bytes,
        "settings": settings,
        "files": [
            {"path": str(file.path), "bytes": file.size, "mtime_ns": file.path.stat().st_mtime_ns} for file in files
        ],
        "shards": [{"file": numbers[part.file.path], "start": part.start, "end": part.end} for part in parts],
    }
    return ShardPlan(fields=fields, parts=parts)


def freeze_plan(output: Path, plan: ShardPlan, *, overwrite: bool) -> None:
    """Writes PREFIX/plan.json, or finds it there; PREFIX.validation gets the same where documents are held out.

    Args:
        output: The folder of the shards.
        plan: Of the whole job.
        overwrite: Whether finished shards and another plan are removed first.

    Raises:
        DataError: If another plan is there and must not be replaced, a shard that would be removed is being
            written, or PREFIX.validation holds what this plan does not hold out.
    """
    held_out = beside(output, ".validation")
    holds_out = bool(plan.fields["settings"]["hold_out_percent"])
    if not holds_out and (held_out / "plan.json").exists() and read_plan(held_out)["settings"]["hold_out_percent"]:
        raise DataError(f"{held_out}: holds documents that an earlier job held out; give --hold-out, or remove it")
    folders = [output, held_out] if holds_out else [output]
    if overwrite:  # a shard that is left from before would count as one of this plan
        for lock in (lock for folder in folders for lock in folder.glob("shard-*.lock")):
            if is_being_written(lock.with_suffix("")):
                raise DataError(f"{lock.with_suffix('')}: another process is writing it; wait for it, or end it first")
        for stale in [path for folder in folders for path in sorted(folder.glob("shard-*"), key=_manifests_first)]:
            if stale.suffix != ".lock":
                stale.unlink()
    for folder in reversed(folders):
        _freeze(folder, plan, overwrite=overwrite)


def _manifests_first(path: Path) -> bool:
    """Sorts so that a kill on the way leaves no manifest without its files."""
    return path.suffix != ".json"


def _freeze(folder: Path, plan: ShardPlan, *, overwrite: bool) -> None:
    path = folder / "plan.json"
    folder.mkdir(parents=True, exist_ok=True)
    content = orjson.dumps(plan.fields, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if overwrite:
        write_atomically(path, content)
        return
    own = beside(path, f".{os.getpid()}.partial")
    try:
        own.write_bytes(content)
        os.link(own, path)  # of tasks that start together, one succeeds and all compare
    except (FileExistsError, FileNotFoundError):  # not found: another task, which saw the plan there, has tidied up
        _refuse_another_plan(path, plan.fields)
    finally:
        own.unlink(missing_ok=True)
    for left in folder.glob("plan.json.*.partial"):  # of tasks that were killed
        left.unlink(missing_ok=True)


def _refuse_another_plan(path: Path, fields: dict[str, Any]) -> None:
    there = read_plan(path.parent)
    changes = [key for key in fields if there.get(key) != fields[key]]
    if "settings" in changes:
        settings = fields["settings"]
        changes += [f"settings.{key}" for key in settings if there.get("settings", {}).get(key) != settings[key]]
    if changes:
        raise DataError(
            f"{path}: is the plan of another job, or its input was changed: {', '.join(changes)} differ; "
            "give --overwrite, or another --output"
        )


def tokenize_shards(
    job: DatasetJob,
    plan: ShardPlan,
    task: Task,
    progress: Progress,
) -> list[tuple[int, TokenizeResult]]:
    """Writes the shards of one task that are missing.

    Args:
        job: What to do; its output is the folder of the shards.
        plan: Frozen.
        task: Which of the processes this is.
        progress: Is told of every byte, those of finished shards included.

    Returns:
        The results by number of shard.

    Raises:
        UsageError: If there is no such task.
        DataError: If shards failed, after all others were written; each has a `.error` file that says why.
    """
    tokenizer: list[Tokenizer] = []

    def load() -> Tokenizer:  # once, and not at all where nothing is missing
        if not tokenizer:
            tokenizer.append(job.load_tokenizer())
        return tokenizer[0]

    results, failed = [], []
    for number, part in parts_of_task(plan.parts, task=task.number, num_tasks=task.of):
        try:
            results.append((number, write_shard(job, (number, part), progress, load=load)))
        except UserError as error:
            failed.append(note_failure(job, number, error))
    if failed:
        raise shards_failed(failed, of=len(failed) + len(results))
    return results


def write_shard(
    job: DatasetJob,
    numbered: tuple[int, Part],
    progress: Progress,
    *,
    load: Callable[[], Tokenizer] | None = None,
) -> TokenizeResult:
    """Writes one shard, unless it is there.

    Args:
        job: What to do; its output is the folder of the shards.
        numbered: Number of the shard, and the part of the input that makes it.
        progress: Is told of every byte.
        load: Gives the tokenizer; None: it is loaded.

    Raises:
        UserError: As `write_dataset` does.
    """
    number, part = numbered
    prefix = shard_prefix(job.output, number)
    held_out = shard_prefix(beside(job.output, ".validation"), number)
    shard = replace(job, inputs=(part.file.path,), part=part, output=prefix, validation=held_out, overwrite=False)
    result = write_dataset(shard, progress, load=load)
    beside(prefix, ".error").unlink(missing_ok=True)
    if result.was_done:
        progress.advance(part.size)
    return result


def note_failure(job: DatasetJob, number: int, error: UserError) -> str:
    """Leaves the reason beside a shard, for `status`; returns it with the shard's name."""
    prefix = shard_prefix(job.output, number)
    beside(prefix, ".error").write_text(f"{error}\n")
    return f"{prefix.name}: {error}"


def shards_failed(failed: Sequence[str], *, of: int) -> DataError:
    """What ends a job after all shards that could be written were."""
    return DataError(f"{len(failed)} of {of} shards failed:\n  " + "\n  ".join(failed))


@dataclass(frozen=True)
class ShardStatus:
    """How far one shard is.

    Attributes:
        prefix: PREFIX of the shard.
        state: done; running (in a process of this machine); damaged (its files do not fit its manifest, or
            that not the plan); failed; missing. Of shards in a Slurm queue also queued.
        said: What went wrong.
        manifest: Of a shard that is done.
    """

    prefix: Path
    state: str
    said: str = ""
    manifest: Manifest | None = None


def status(output: Path) -> list[ShardStatus]:
    """The state of every shard.

    Raises:
        DataError: If there is no plan.
    """
    plan = read_plan(output)
    return [_status(output, plan, number) for number in range(len(plan["shards"]))]


def _status(output: Path, plan: dict[str, Any], number: int) -> ShardStatus:
    prefix = shard_prefix(output, number)
    if not manifest_path(prefix).exists():
        if is_being_written(prefix):
            return ShardStatus(prefix, "running")
        error = beside(prefix, ".error")
        if error.exists():
            return ShardStatus(prefix, "failed", error.read_text().strip())
        return ShardStatus(prefix, "missing")
    try:
        return ShardStatus(prefix, "done", manifest=open_shard(output, plan, number).manifest)
    except DataError as error_there:
        return ShardStatus(prefix, "damaged", str(error_there))


def totals(shards: Sequence[ShardStatus]) -> dict[str, int]:
    """Documents, tokens, rejected records and what a filter leaves out, of the shards that are done."""
    manifests = [shard.manifest for shard in shards if shard.manifest]
    return {
        "documents": sum(manifest.documents for manifest in manifests),
        "tokens": sum(manifest.tokens for manifest in manifests),
        "rejected": sum(manifest.rejected for manifest in manifests),
        "left out by --where": sum(manifest.left_out for manifest in manifests),
    }
