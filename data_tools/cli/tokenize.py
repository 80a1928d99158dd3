"""The verb `tokenize`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.cli.output import print_table, warn
from data_tools.cli.selection import add_answer_rule, add_where, answer_rule_of, where_of

if TYPE_CHECKING:
    from data_tools.job import TokenizeJob
    from data_tools.manifest import Manifest


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Turn records into PREFIX.bin, .idx, .origin and PREFIX.manifest.json, which is written last."
    parser = verbs.add_parser("tokenize", help=about, description=about)
    parser.example = (
        "python -m data_tools tokenize --input data/demo/raw/shq.jsonl --tokenizer data/demo/tokenizer \\\n"
        "      --output data/demo/tokens/shq --append-eod"
    )
    _add_reading(parser)
    _add_encoding(parser)
    _add_writing(parser)
    parser.set_defaults(verb=_tokenize)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="files, folders, globs, - for stdin: JSONL, packed or not; Parquet",
    )
    parser.add_argument("--adapter", default="text", metavar="NAME", help="how the records are read (default text)")
    parser.add_argument("--key", help="key of the text, for the adapter text (default text; else conversations)")
    add_where(parser)
    add_answer_rule(parser)
    parser.add_argument(
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help="at a record without text: stop (default), or leave it out, count it and list it",
    )
    parser.add_argument("--max-bad", default="", metavar="N|P%", help="stop where more records are left out than this")
    parser.add_argument("--rejects", type=Path, metavar="FILE", help="list of them (PREFIX.rejects.jsonl)")


def _add_encoding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="DIR", help="folder of tokenizer.json, or that file"
    )
    parser.add_argument("--append-eod", action="store_true", help="end each document with the end-of-document id")
    parser.add_argument(
        "--special-tokens",
        choices=("parse", "literal", "reject"),
        help="text that spells a control token: becomes it, stays plain characters (default), or is left out",
    )
    parser.add_argument(
        "--compat",
        choices=("megatron",),
        default="",
        help="write what preprocess_data.py writes: parse control tokens, keep empty texts",
    )
    parser.add_argument(
        "--bpe", choices=("auto", "gigatoken", "tokenizers"), default="auto", help="library that encodes (default auto)"
    )
    parser.add_argument(
        "--verify-sample",
        type=int,
        default=1_000,
        metavar="N",
        help="documents that both libraries encode and that must agree (default 1000)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads that encode (default: the cores there are)")


def _add_writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX", help="prefix of the files")
    parser.add_argument(
        "--hold-out", default="0%", metavar="P%", help="documents, by the hash of their id, for PREFIX.validation"
    )
    parser.add_argument(
        "--shard-bytes", metavar="N", help="write PREFIX/shard-00000 and so on, each of this much input: 20G"
    )
    parser.add_argument(
        "--task", metavar="I/N", help="of the shards write every Nth from I, 0 to N-1 (default: the Slurm array's task)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace whatever stands at PREFIX")


def _job(options: argparse.Namespace) -> TokenizeJob:
    from data_tools.job import TokenizeJob

    return TokenizeJob(
        inputs=tuple(options.input),
        tokenizer=options.tokenizer,
        output=options.output,
        key=options.key,
        adapter=options.adapter,
        append_eod=options.append_eod,
        where=where_of(options),
        answer_rule=answer_rule_of(options),
        special_tokens=options.special_tokens or ("parse" if options.compat else "literal"),
        compat=options.compat,
        hold_out_percent=_percent(options.hold_out),
        on_error=options.on_error,
        max_bad=options.max_bad,
        rejects=options.rejects,
        overwrite=options.overwrite,
        bpe=options.bpe,
        verify_sample=options.verify_sample,
        command=options.command,
    )


def _percent(written: str) -> float:
    from data_tools.errors import UsageError

    try:
        return float(written.removesuffix("%"))
    except ValueError:
        raise UsageError(f"--hold-out: {written!r} is no percentage; write it as 0.5%") from None


def _tokenize(options: argparse.Namespace) -> None:
    from data_tools.bpe import limit_threads
    from data_tools.errors import UsageError
    from data_tools.inputs import find_inputs
    from data_tools.inspection import summary
    from data_tools.progress import shown
    from data_tools.tokenize import tokenize

    job = _job(options)
    job.check()
    limit_threads(_workers(options.workers))
    if options.shard_bytes is not None:
        _tokenize_shards(job, options)
        return
    if options.task is not None:
        raise UsageError("--task: divides shards among processes; give --shard-bytes too")
    inputs = find_inputs(job.inputs)
    if inputs.left_out:
        names = ", ".join(str(path) for path in inputs.left_out[:3])
        warn(f"{len(inputs.left_out):,} files are no inputs by their names and were left out: {names}, …")
    with shown(f"tokenize {options.output.name}", inputs.size) as progress:
        result = tokenize(job, progress)
    _warn_of(job, result.manifest, result.held_out)
    state = "already done" if result.was_done else "done"
    rows = [list(row) for row in summary(result.manifest)]
    if result.held_out:
        rows.append(["held out", f"{result.held_out.documents:,} documents, {result.held_out.tokens:,} tokens"])
    print_table(f"{options.output}: {state}", ["", ""], rows)


def _tokenize_shards(job: TokenizeJob, options: argparse.Namespace) -> None:
    from data_tools.errors import UsageError
    from data_tools.parts import parts_of_task
    from data_tools.progress import shown
    from data_tools.shards import freeze_plan, make_plan, parse_task, tokenize_shards

    task = parse_task(options.task)
    if job.overwrite and task.of > 1:
        raise UsageError("--overwrite: would remove what other tasks have written; remove PREFIX instead")
    plan = make_plan(job, shard_bytes=_bytes(options.shard_bytes))
    own = parts_of_task(plan.parts, task=task.number, num_tasks=task.of)
    freeze_plan(job.output, plan, overwrite=job.overwrite)
    with shown(f"tokenize {job.output.name}", sum(part.size for _, part in own)) as progress:
        results = tokenize_shards(job, plan, task, progress)
    manifests = [result.manifest for _, result in results]
    if rejected := sum(manifest.rejected for manifest in manifests):
        warn(f"{rejected:,} lines were rejected; each shard lists its own in .rejects.jsonl")
    left_out = sum(manifest.left_out for manifest in manifests)
    rows = [
        ["shards", f"{len(plan.parts):,}, of which {len(results):,} are this task's"],
        ["written now", f"{sum(not result.was_done for _, result in results):,}"],
        ["documents", f"{sum(manifest.documents for manifest in manifests):,}"],
        *([["left out by --where", f"{left_out:,} ({job.where})"]] if job.where else []),
        ["tokens", f"{sum(manifest.tokens for manifest in manifests):,}"],
    ]
    print_table(f"{job.output}: task {task.number} of {task.of} is done", ["", ""], rows)


def _bytes(written: str) -> int:
    from data_tools.errors import UsageError
    from data_tools.quantities import parse_count

    try:
        return parse_count(written.replace("G", "B"))  # data_tools counts in billions, disks in gigabytes
    except ValueError as error:
        raise UsageError(f"--shard-bytes: {error}") from None


def _workers(asked: int | None) -> int:
    from data_tools.errors import UsageError

    if asked is not None and asked < 1:
        raise UsageError(f"--workers: {asked} is below 1")
    return asked or len(os.sched_getaffinity(0))


def _warn_of(job: TokenizeJob, manifest: Manifest, held_out: Manifest | None) -> None:
    if manifest.rejected:
        warn(f"{manifest.rejected:,} lines were rejected; they are listed in {job.rejects_path}")
    if held_out and not held_out.documents:
        warn(f"--hold-out {job.hold_out_percent:g}%: held out none of {manifest.documents:,} documents; raise it")
    if manifest.engine and manifest.engine.reason:
        warn(f"encoded by tokenizers, the slow library: gigatoken does not take it: {manifest.engine.reason}")
