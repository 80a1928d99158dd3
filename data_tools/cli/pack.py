"""The verb `pack`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.cli.output import print_table, warn

if TYPE_CHECKING:
    from data_tools.pack_index import ChangedRecord, PackManifest


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Decide which conversations share a row of fixed length: OUT.packs and OUT.packs.json, no tokens."
    parser = verbs.add_parser("pack", help=about, description=about)
    parser.example = (
        "python -m data_tools chat --input data/demo/raw/shq.jsonl --adapter openthoughts3 \\\n"
        "      --tokenizer data/demo/tokenizer --output data/demo/chat/shq\n"
        "  python -m data_tools pack data/demo/chat/shq --length 4096 --output data/demo/packs/shq"
    )
    parser.add_argument(
        "data", type=Path, metavar="PREFIX", help="prefix of a dataset, as from chat; shards are merged first"
    )
    parser.add_argument("--length", required=True, metavar="N", help="tokens of a row: 4096, 32K")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="prefix of the files")
    parser.add_argument(
        "--algo",
        choices=("bfd", "bf-shuffle", "concat"),
        default="bfd",
        help="best fit, longest first (default); best fit in random order; one after the other, cut where rows end",
    )
    parser.add_argument(
        "--overlong",
        choices=("error", "drop", "truncate", "split", "trim-thinking"),
        default="error",
        help="what becomes of conversations above --length (default error)",
    )
    parser.add_argument(
        "--pad-multiple",
        type=int,
        default=1,
        metavar="N",
        help="pad each piece to a multiple of N: 2 x context parallel",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the order of rows (default 0)")
    parser.add_argument(
        "--out",
        choices=("index", "megatron-jsonl", "bridge-parquet"),
        default="index",
        help="also write OUT.jsonl or OUT.parquet for trainers that read those (default index: neither)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace whatever stands at OUT")
    parser.set_defaults(verb=_pack)


def _pack(options: argparse.Namespace) -> None:
    from data_tools.errors import UsageError
    from data_tools.pack import PackJob, pack_dataset
    from data_tools.quantities import parse_count

    try:
        length = parse_count(options.length)
    except ValueError as error:
        raise UsageError(f"--length: {error}") from None
    job = PackJob(
        data=options.data,
        output=options.output,
        length=length,
        algorithm=options.algo,
        overlong=options.overlong,
        pad_multiple=options.pad_multiple,
        seed=options.seed,
        form=options.out,
        overwrite=options.overwrite,
        command=options.command,
    )
    result = pack_dataset(job)
    if result.manifest.untrained_pieces:
        warn(
            f"{result.manifest.untrained_pieces:,} pieces hold no trained token: a row ends before their answers begin"
        )
    print_table(f"{options.output}: {'already done' if result.was_done else 'done'}", ["", ""], _rows(result.manifest))


def _rows(packs: PackManifest) -> list[list[str]]:
    filled = 100 * packs.packed_tokens / (packs.packs * packs.length)
    trained = 100 * packs.packed_trained_tokens / max(1, packs.trained_tokens)
    return [
        ["rows", f"{packs.packs:,} of {packs.length:,} tokens, {packs.algorithm}"],
        ["pieces", f"{packs.pieces:,}, {packs.pieces / packs.packs:.1f} a row"],
        ["conversations", f"{packs.conversations:,}"],
        ["tokens in rows", f"{packs.packed_tokens:,} of {packs.tokens:,}"],
        ["trained tokens in rows", f"{packs.packed_trained_tokens:,} of {packs.trained_tokens:,} ({trained:.2f} %)"],
        ["fill", f"{filled:.3f} %, {packs.padding:,} positions of padding"],
        ["dropped", _changed(packs.dropped)],
        ["truncated", _changed(packs.truncated)],
        ["thinking trimmed", _changed(packs.trimmed)],
        ["split over rows", _conversations(packs.split)],
    ]


def _changed(changed: ChangedRecord) -> str:
    return f"{_conversations(changed)}, {changed.tokens:,} tokens lost"


def _conversations(changed: ChangedRecord) -> str:
    return f"{changed.conversations:,} conversation{'' if changed.conversations == 1 else 's'}"
