"""The verb `status`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from data_tools.cli.output import print_table, warn

STATES = ("done", "running", "queued", "damaged", "failed", "missing")


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = (
        "Show which shards are done, running, queued, damaged, failed or missing; exit 3 unless all are done. "
        "Running are those that a process of this machine writes, or a task of --engine slurm."
    )
    parser = verbs.add_parser("status", help=about, description=about)
    parser.example = (
        "python -m data_tools tokenize --input data/demo/raw/base.jsonl --tokenizer data/demo/tokenizer \\\n"
        "      --output data/demo/shards/base --append-eod --shard-bytes 2M\n"
        "  python -m data_tools status data/demo/shards/base"
    )
    parser.add_argument("output", type=Path, metavar="PREFIX", help="folder of plan.json, as given to --output")
    parser.set_defaults(verb=_status)


def _status(options: argparse.Namespace) -> int:
    from data_tools.engines.slurm import queue, with_queue
    from data_tools.errors import DataError, SetupError, UsageError
    from data_tools.manifest import manifest_path
    from data_tools.shards import status, totals

    if manifest_path(options.output).exists():
        raise UsageError(
            f"{options.output}: is one finished dataset and not shards; "
            f"python -m data_tools inspect {options.output} shows it, verify checks it"
        )
    try:
        found = queue(options.output)
    except SetupError as error:
        found = None
        warn(f"{error}; what a Slurm job is doing is not known")
    shards = with_queue(status(options.output), found)
    counts = Counter(shard.state for shard in shards)
    rows = [[state, f"{counts[state]:,}"] for state in STATES if counts[state] or state not in ("running", "queued")]
    if found:
        rows.append([f"job {found.job}", f"{len(found.running):,} tasks run, {len(found.waiting):,} wait"])
    rows += [[name, f"{count:,}"] for name, count in totals(shards).items()]
    for shard in shards:
        if shard.said:
            print(f"{shard.prefix.name}: {shard.state}: {shard.said}")
    print_table(f"{options.output}: {len(shards):,} shards", ["", ""], rows)
    return 0 if counts["done"] == len(shards) else DataError.exit_code
