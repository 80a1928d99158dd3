"""What the verbs `tokenize` and `chat` have in common: options, shards, and the table at the end."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.cli import shards
from data_tools.cli.output import print_table, warn

if TYPE_CHECKING:
    from data_tools.job import DatasetJob
    from data_tools.manifest import Manifest
    from data_tools.tokenize import TokenizeResult


def add_inputs(parser: Any, *, adapter: str) -> None:
    """Options of what is read."""
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="files, folders, globs, - for stdin: JSONL, packed or not; Parquet",
    )
    parser.add_argument(
        "--adapter", default=adapter, metavar="NAME", help=f"how the records are read (default {adapter})"
    )


def add_rejecting(parser: Any, wanted: str) -> None:
    """Options of records that hold nothing."""
    parser.add_argument(
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help=f"at a record without {wanted}: stop (default), or leave it out, count it and list it",
    )
    parser.add_argument("--max-bad", default="", metavar="N|P%", help="stop where more records are left out than this")
    parser.add_argument("--rejects", type=Path, metavar="FILE", help="list of them (PREFIX.rejects.jsonl)")


def add_tokenizer(parser: Any) -> None:
    """The option that names the tokenizer."""
    parser.add_argument(
        "--tokenizer",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of tokenizer.json or of a SentencePiece .model, or that file",
    )


def add_machine(parser: Any) -> None:
    """Options of what encodes."""
    parser.add_argument(
        "--bpe", choices=("auto", "gigatoken", "tokenizers"), default="auto", help="library that encodes (default auto)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads that encode (default: gigatoken 1, tokenizers all)"
    )


def add_placing(parser: Any) -> None:
    """Options of what is written."""
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX", help="prefix of the files")
    parser.add_argument(
        "--hold-out", default="0%", metavar="P%", help="documents, by the hash of their id, for PREFIX.validation"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace whatever stands at PREFIX")
    shards.add_options(parser)


def common(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of the job that both verbs fill alike."""
    return {
        "tokenizer": options.tokenizer,
        "output": options.output,
        "hold_out_percent": _percent(options.hold_out),
        "on_error": options.on_error,
        "max_bad": options.max_bad,
        "rejects": options.rejects,
        "overwrite": options.overwrite,
        "bpe": options.bpe,
        "command": options.command,
    }


def _percent(written: str) -> float:
    from data_tools.errors import UsageError

    try:
        return float(written.removesuffix("%"))
    except ValueError:
        raise UsageError(f"--hold-out: {written!r} is no percentage; write it as 0.5%") from None


def write(
    job: DatasetJob,
    options: argparse.Namespace,
    run: Callable[..., TokenizeResult],
    rows_of: Callable[[Manifest], list[list[str]]],
) -> None:
    """Does a job, all of it or a task's shards, and says what came of it."""
    from data_tools.inputs import find_inputs
    from data_tools.progress import shown
    from data_tools.threads import limit_threads

    job.check()
    limit_threads(_workers(options.workers))
    inputs = find_inputs(job.inputs)
    if inputs.left_out:
        names = ", ".join(map(str, inputs.left_out[:3])) + (", …" if inputs.left_out[3:] else "")
        warn(f"files left out, as their names are not those of inputs ({len(inputs.left_out):,}): {names}")
    if shards.are_asked_for(options):
        shards.run(job, options)
        return
    with shown(f"{options.command.split()[1]} {options.output.name}", inputs.size) as progress:
        result = run(job, progress)
    _warn_of(job, result.manifest, result.held_out)
    rows = rows_of(result.manifest)
    if result.held_out:
        rows.append(["held out", f"{result.held_out.documents:,} documents, {result.held_out.tokens:,} tokens"])
    print_table(f"{options.output}: {'already done' if result.was_done else 'done'}", ["", ""], rows)


def _workers(asked: int | None) -> int | None:
    from data_tools.errors import UsageError

    if asked is not None and asked < 1:
        raise UsageError(f"--workers: {asked} is below 1")
    return asked


def _warn_of(job: DatasetJob, manifest: Manifest, held_out: Manifest | None) -> None:
    if manifest.rejected:
        listed = "they are listed in" if job.rejects_path.exists() else "their list is no longer at"
        warn(f"{manifest.rejected:,} lines were rejected; {listed} {job.rejects_path}")
    if held_out and not held_out.documents:
        warn(f"--hold-out {job.hold_out_percent:g}%: held out none of {manifest.documents:,} documents; raise it")
    shards.warn_of_slow_engine([manifest])
