"""The verb `tokenize`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from data_tools.cli.dataset import add_inputs, add_machine, add_placing, add_rejecting, add_tokenizer, common, write
from data_tools.cli.selection import add_answer_rule, add_where, answer_rule_of, where_of

if TYPE_CHECKING:
    from data_tools.manifest import Manifest


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Turn records into PREFIX.bin, .idx, .origin and PREFIX.manifest.json, which is written last."
    parser = verbs.add_parser("tokenize", help=about, description=about)
    parser.example = (
        "python -m data_tools tokenize --input data/demo/raw/shq.jsonl --tokenizer data/demo/tokenizer \\\n"
        "      --output data/demo/tokens/shq --append-eod"
    )
    add_inputs(parser, adapter="text")
    parser.add_argument("--key", help="key of the text, for the adapter text (default text; else conversations)")
    add_where(parser)
    add_answer_rule(parser)
    add_rejecting(parser, "text")
    add_tokenizer(parser)
    _add_encoding(parser)
    add_machine(parser)
    add_placing(parser)
    parser.set_defaults(verb=_tokenize)


def _add_encoding(parser: argparse.ArgumentParser) -> None:
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
        "--verify-sample",
        type=int,
        default=1_000,
        metavar="N",
        help="documents that both libraries encode and that must agree (default 1000)",
    )


def _tokenize(options: argparse.Namespace) -> None:
    from data_tools.job import TokenizeJob
    from data_tools.tokenize import tokenize

    job = TokenizeJob(
        inputs=tuple(options.input),
        key=options.key,
        adapter=options.adapter,
        append_eod=options.append_eod,
        where=where_of(options),
        answer_rule=answer_rule_of(options),
        special_tokens=options.special_tokens or ("parse" if options.compat else "literal"),
        compat=options.compat,
        verify_sample=options.verify_sample,
        **common(options),
    )
    write(job, options, tokenize, _rows)


def _rows(manifest: Manifest) -> list[list[str]]:
    from data_tools.inspection import summary

    return [list(row) for row in summary(manifest)]
