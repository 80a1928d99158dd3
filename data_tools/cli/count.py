"""The verb `count`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_tools.cli.output import print_table
from data_tools.cli.selection import add_answer_rule, add_where, answer_rule_of, where_of


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Count the tokens of inputs without writing them; records that would be refused are counted too."
    parser = verbs.add_parser("count", help=about, description=about)
    parser.example = "python -m data_tools count --input data/demo/raw/shq.jsonl --tokenizer data/demo/tokenizer"
    parser.add_argument(
        "--input", type=Path, nargs="+", required=True, metavar="FILE", help="files, folders, globs, - for stdin"
    )
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder of tokenizer.json")
    parser.add_argument("--adapter", default="text", metavar="NAME", help="how the records are read (default text)")
    parser.add_argument("--key", help="key of the text, for the adapter text")
    parser.add_argument("--append-eod", action="store_true", help="count an end-of-document id for each document")
    add_where(parser)
    add_answer_rule(parser)
    parser.set_defaults(verb=_count)


def _count(options: argparse.Namespace) -> None:
    from data_tools.count import count
    from data_tools.inputs import find_inputs
    from data_tools.job import TokenizeJob
    from data_tools.progress import shown

    job = TokenizeJob(
        inputs=tuple(options.input),
        tokenizer=options.tokenizer,
        output=Path(),
        key=options.key,
        adapter=options.adapter,
        append_eod=options.append_eod,
        where=where_of(options),
        answer_rule=answer_rule_of(options),
    )
    with shown("count", find_inputs(job.inputs).size) as progress:
        counted = count(job, progress)
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in sorted(counted.rejected.items()))
    rows = [
        ["documents", f"{counted.documents:,}"],
        ["tokens", f"{counted.tokens:,}"],
        *([["left out by --where", f"{counted.left_out:,} ({job.where})"]] if job.where else []),
        ["would be rejected", f"{counted.rejected.total():,}" + (f" ({reasons})" if reasons else "")],
    ]
    print_table("counted, not written", ["", ""], rows)
