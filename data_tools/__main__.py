"""Command line of `data_tools`: the verbs of one file each in `data_tools/cli/`, and the older ones here."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from data_tools.cli import blend, chat, count, merge, overlap, pack, sample, status, tokenize, verify
from data_tools.cli.output import print_table, warn
from data_tools.command_line import exit_code_of


class _Parser(argparse.ArgumentParser):
    """A parser whose help starts with a command to copy."""

    example = ""

    def format_help(self) -> str:
        return f"Example:\n  {self.example}\n\n{super().format_help()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        arguments: The command line without the program's name; that of the process when None.

    Returns:
        The exit code; see `data_tools.errors`.
    """
    options = _parser().parse_args(arguments)
    options.command = shlex.join(["data-tools", *(sys.argv[1:] if arguments is None else arguments)])
    return exit_code_of(lambda: options.verb(options))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="data-tools", description="Raw text into verified Megatron datasets.")
    parser.example = "python -m data_tools sample --out data/demo/raw"
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)
    sample.add(verbs)
    _add_train_tokenizer(verbs)
    tokenize.add(verbs)
    _add_inspect(verbs)
    chat.add(verbs)
    pack.add(verbs)
    blend.add(verbs)
    overlap.add(verbs)
    status.add(verbs)
    merge.add(verbs)
    count.add(verbs)
    verify.add(verbs)
    return parser


_Verbs = argparse._SubParsersAction  # argparse has no public name for it


def _add_train_tokenizer(verbs: _Verbs[_Parser]) -> None:
    about = "Train a byte-level BPE tokenizer."
    parser = verbs.add_parser("train-tokenizer", help=about, description=about)
    parser.example = (
        "python -m data_tools train-tokenizer --input data/demo/raw/base.jsonl data/demo/raw/ldq.jsonl \\\n"
        "      data/demo/raw/shq.jsonl --vocab-size 4096 --out data/demo/tokenizer"
    )
    _add_input(parser)
    parser.add_argument("--vocab-size", required=True, metavar="N", help="ids, added tokens included; 4096, 128K")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of tokenizer.json")
    parser.set_defaults(verb=_train_tokenizer)


def _add_inspect(verbs: _Verbs[_Parser]) -> None:
    about = "Show what a dataset holds."
    parser = verbs.add_parser("inspect", help=about, description=about)
    parser.example = "python -m data_tools inspect data/demo/tokens/shq --document 0 --tokenizer data/demo/tokenizer"
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="prefix of the three files")
    parser.add_argument("--document", type=int, metavar="N", help="also show document N, counted from 0")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="show it as text instead of ids")
    parser.set_defaults(verb=_inspect)


def _add_input(parser: _Parser) -> None:
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="files, folders, globs: JSONL, packed or not; Parquet",
    )
    parser.add_argument("--key", default="text", help="key of the text (default text; else conversations is read)")


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


def _inspect(options: argparse.Namespace) -> None:
    from data_tools.errors import UsageError
    from data_tools.inspection import document_ids, document_text, length_histogram, open_dataset, summary

    if options.tokenizer and options.document is None:
        raise UsageError("--tokenizer: shows a document as text; give --document N too")
    dataset = open_dataset(options.prefix)
    print_table(str(options.prefix), ["", ""], [list(row) for row in summary(dataset.manifest)])
    print("\n".join(length_histogram(dataset.documents.lengths)))
    if options.document is None:
        return
    print(f"\ndocument {options.document}:")
    if options.tokenizer:
        print(document_text(dataset, options.document, options.tokenizer))
    else:
        print(*document_ids(dataset, options.document))


if __name__ == "__main__":
    sys.exit(main())
