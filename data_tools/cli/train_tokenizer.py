"""The verb `train-tokenizer`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_tools.cli.output import print_table, warn


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Train a byte-level BPE tokenizer."
    parser = verbs.add_parser("train-tokenizer", help=about, description=about)
    parser.example = (
        "python -m data_tools train-tokenizer --input data/demo/raw/base.jsonl data/demo/raw/ldq.jsonl \\\n"
        "      data/demo/raw/shq.jsonl --vocab-size 4096 --out data/demo/tokenizer"
    )
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="files, folders, globs: JSONL, packed or not; Parquet",
    )
    parser.add_argument("--key", default="text", help="key of the text (default text; else conversations is read)")
    parser.add_argument("--vocab-size", required=True, metavar="N", help="ids, added tokens included; 4096, 128K")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of tokenizer.json")
    parser.set_defaults(verb=_train_tokenizer)


def _train_tokenizer(options: argparse.Namespace) -> None:
    from data_tools.errors import UsageError
    from data_tools.quantities import parse_count
    from data_tools.tokenizer_training import train_tokenizer

    try:
        vocab_size = parse_count(options.vocab_size)
    except ValueError as error:
        raise UsageError(f"--vocab-size: {error}") from None
    trained = train_tokenizer(options.input, key=options.key, vocab_size=vocab_size, out=options.out)
    facts = trained.facts
    if facts.vocab_size < vocab_size:
        warn(f"--vocab-size: asked for {vocab_size:,} ids, the text has merges for {facts.vocab_size:,}")
    print_table(
        f"tokenizer {'was there already: ' if trained.was_there else ''}{options.out}",
        ["", ""],
        [
            ["ids", f"{facts.vocab_size:,}"],
            ["end of document", f"{facts.eod_token} = {facts.eod_id}"],
            ["documents read", "none" if trained.was_there else f"{trained.documents:,}"],
            ["fingerprint", facts.fingerprint[:16]],
        ],
    )
