"""The verb `inspect`."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.cli.output import print_runs, print_table
from data_tools.errors import UsageError

if TYPE_CHECKING:
    from data_tools.document_view import Documents, DocumentView, PieceView, Rows
    from data_tools.length_chart import Lengths
    from data_tools.tokenizer import Tokenizer


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Show what a dataset or packs hold: numbers, lengths, a document or a row with its loss mask."
    parser = verbs.add_parser("inspect", help=about, description=about)
    parser.example = "python -m data_tools inspect data/demo/tokens/shq --document 0 --tokenizer data/demo/tokenizer"
    parser.add_argument(
        "prefix", type=Path, metavar="PREFIX", help="prefix of a dataset, folder of its shards, or prefix of packs"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--document", type=int, metavar="N", help="show document N, counted from 0")
    what.add_argument("--row", type=int, metavar="N", help="show row N of packs, counted from 0")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="show it as text instead of ids; in a pipe ⟦so⟧ is trained on"
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw the lengths (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(verb=_inspect)


def _inspect(options: argparse.Namespace) -> None:
    from data_tools.document_view import Rows, open_view
    from data_tools.length_chart import write_png

    if options.tokenizer and options.document is None and options.row is None:
        raise UsageError("--tokenizer: shows a document or a row as text; give --document N or --row N too")
    view = open_view(options.prefix, wants_row=options.row is not None)
    if isinstance(view, Rows) and options.document is not None:
        raise UsageError(f"--document: {options.prefix} holds packs; give --row N, or name their dataset")
    tokenizer = _tokenizer(options.tokenizer, view) if options.tokenizer else None
    number = options.document if options.row is None else options.row
    if number is not None and not 0 <= number < len(view):
        option = "--document" if options.row is None else "--row"
        raise UsageError(f"{option}: {number} is not in 0..{len(view) - 1} of {options.prefix}")
    if options.png:
        write_png(options.png, _lengths(view), title=_title(view, options.prefix), of=_things(view))
        if not options.json:
            print(f"wrote {options.png}\n")
    if options.json:
        _print_json(view, number, tokenizer)
    elif number is None:
        _show_all(view, options.prefix)
    elif isinstance(view, Rows):
        _show_row(view, number, tokenizer, options.prefix)
    else:
        _show_document(view[number], tokenizer, f"{options.prefix}: document {number:,} of {len(view):,}")


def _tokenizer(folder: Path, view: Documents | Rows) -> Tokenizer:
    from data_tools.document_view import Rows
    from data_tools.errors import DataError
    from data_tools.tokenizer import Tokenizer

    stored = (view.documents if isinstance(view, Rows) else view).stored
    loaded, made_by = Tokenizer.load(folder), stored.tokenizer
    if loaded.fingerprint != made_by.fingerprint:
        raise DataError(
            f"{folder}: fingerprint {loaded.fingerprint[:16]} is not {made_by.fingerprint[:16]}, that of "
            f'"{made_by.name}", which made {stored.prefix}; give that folder'
        )
    return loaded


def _title(view: Documents | Rows, prefix: Path) -> str:
    lengths = _lengths(view)["tokens"]
    return f"{prefix}: {len(lengths):,} {_things(view)}, {int(lengths.sum()):,} tokens"


def _things(view: Documents | Rows) -> str:
    from data_tools.document_view import Rows

    return "pieces" if isinstance(view, Rows) else "documents"


def _lengths(view: Documents | Rows) -> dict[str, Lengths]:
    """What is drawn: of packs the lengths of the pieces."""
    from data_tools.document_view import Rows

    if isinstance(view, Rows):
        return {"tokens": view.pieces.lengths}
    return {"tokens": view.lengths} | ({} if view.trained is None else {"trained tokens": view.trained})


def _facts(view: Documents | Rows) -> list[list[str]]:
    """Rows of the summary."""
    from data_tools.document_view import Rows
    from data_tools.inspection import summary_of_all
    from data_tools.length_chart import LengthFacts

    each = {f"{name} per document": str(LengthFacts.of(values)) for name, values in _lengths(view).items()}
    if not isinstance(view, Rows):
        return [list(row) for row in (dict(summary_of_all(view.stored)) | each).items()]
    packs = view.manifest
    return [
        ["rows", f"{packs.packs:,} of {packs.length:,} tokens, {packs.algorithm}"],
        ["pieces", f"{packs.pieces:,}, {packs.pieces / max(1, packs.packs):.1f} a row"],
        ["padding", f"{packs.padding:,} of {packs.packs * packs.length:,} positions"],
        ["trained tokens", f"{packs.packed_trained_tokens:,} of {packs.packed_tokens:,}"],
        ["dataset", os.path.normpath(view.documents.stored.prefix)],
        ["tokens per piece", *each.values()],
    ]


def _show_all(view: Documents | Rows, prefix: Path) -> None:
    from data_tools.length_chart import text_chart

    for name, values in _lengths(view).items():
        print("\n".join(text_chart(values, name, of=_things(view))), end="\n\n")
    print_table(str(prefix), ["", ""], _facts(view))


def _show_document(document: DocumentView, tokenizer: Tokenizer | None, title: str) -> None:
    from data_tools.marked_text import runs_of

    print_runs(runs_of(document.ids, document.trained, tokenizer))
    rows = [["tokens", f"{len(document.ids):,}"], ["trained tokens", _trained(document)]]
    if origin := document.origin:
        part = f" of the part that starts at byte {origin.start:,}" if origin.start else ""
        rows += [
            ["source", origin.file],
            ["row", f"{origin.row:,}{part}"],
            ["hash of its id", origin.id_hash],
            ["domain", origin.domain],
            ["split", origin.split],
            ["answer", "not marked" if origin.answer_tokens is None else f"{origin.answer_tokens:,} tokens"],
        ]
    else:
        rows.append(["source", "not recorded"])
    print_table(title, ["", ""], rows)


def _show_row(view: Rows, number: int, tokenizer: Tokenizer | None, prefix: Path) -> None:
    from data_tools.marked_text import runs_of

    pieces = view[number]
    for place, piece in enumerate(pieces):
        print(f"-- piece {place} of {len(pieces)}: {_named(piece)}")
        print_runs(runs_of(piece.ids, piece.trained, tokenizer))
    tokens = sum(len(piece.ids) for piece in pieces)
    rows = [
        ["pieces", f"{len(pieces):,}"],
        ["tokens", f"{tokens:,} of {view.manifest.length:,}"],
        ["trained tokens", f"{sum(_count(piece) for piece in pieces):,}"],
        ["padding", f"{view.manifest.length - tokens:,}"],
    ]
    print_table(f"{prefix}: row {number:,} of {len(view):,}", ["", ""], rows)


def _named(piece: PieceView) -> str:
    ranges = " and ".join(f"{start:,} to {stop - 1:,}" for start, stop in piece.ranges)
    origin = piece.document.origin
    said = f", {origin.file}:{origin.row}" if origin else ""
    return f"document {piece.document.number:,}, its tokens {ranges} of {len(piece.document.ids):,}{said}"


def _count(part: DocumentView | PieceView) -> int:
    return len(part.ids) if part.trained is None else int(part.trained.sum())


def _trained(document: DocumentView) -> str:
    share = 100 * _count(document) / max(1, len(document.ids))
    return "all: it is text" if document.trained is None else f"{_count(document):,} ({share:.1f} %)"


def _print_json(view: Documents | Rows, number: int | None, tokenizer: Tokenizer | None) -> None:
    import orjson

    from data_tools.document_view import Rows
    from data_tools.length_chart import LengthFacts, doublings

    shown: dict[str, Any]
    if isinstance(view, Rows):
        shown = {"packs": view.manifest.model_dump(mode="json")}
    else:
        shown = {
            "data_id": view.stored.data_id,
            "manifests": [shard.manifest for shard in view.stored.shards],
        }
    shown["lengths"] = {
        name: asdict(LengthFacts.of(values)) | {"histogram": [asdict(one) for one in doublings(values)]}
        for name, values in _lengths(view).items()
    }
    if number is not None and isinstance(view, Rows):
        shown["row"] = [
            {"document": piece.document.number, "ranges": piece.ranges} | _as_json(piece, tokenizer)
            for piece in view[number]
        ]
    elif number is not None and not isinstance(view, Rows):
        document = view[number]
        origin = asdict(document.origin) if document.origin else None
        shown["document"] = {"number": number, "origin": origin} | _as_json(document, tokenizer)
    print(orjson.dumps(shown, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode())


def _as_json(part: DocumentView | PieceView, tokenizer: Tokenizer | None) -> dict[str, Any]:
    from data_tools.marked_text import runs_of

    runs = [{"text": text, "trained": trained} for text, trained in runs_of(part.ids, part.trained, tokenizer)]
    mask = None if part.trained is None else part.trained.astype(int).tolist()
    return {"ids": part.ids.tolist(), "mask": mask} | ({"runs": runs} if tokenizer else {})
