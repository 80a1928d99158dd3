"""The verb `inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_tools.cli.output import print_table


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Show what a dataset holds."
    parser = verbs.add_parser("inspect", help=about, description=about)
    parser.example = "python -m data_tools inspect data/demo/tokens/shq --document 0 --tokenizer data/demo/tokenizer"
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="prefix of the three files")
    parser.add_argument("--document", type=int, metavar="N", help="also show document N, counted from 0")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="show it as text instead of ids")
    parser.set_defaults(verb=_inspect)


def _inspect(options: argparse.Namespace) -> None:
    from data_tools.errors import UsageError
    from data_tools.inspection import document_ids, document_text, length_histogram, open_dataset, summary

    if options.tokenizer and options.document is None:
        raise UsageError("--tokenizer: shows a document as text; give --document N too")
    dataset = open_dataset(options.prefix)
    if options.document is not None:
        print(f"document {options.document}:")
        if options.tokenizer:
            print(document_text(dataset, options.document, options.tokenizer))
        else:
            print(*document_ids(dataset, options.document))
        print()
    print("\n".join(length_histogram(dataset.documents.lengths)))
    print_table(str(options.prefix), ["", ""], [list(row) for row in summary(dataset.manifest)])
