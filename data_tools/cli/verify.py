"""The verb `verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_tools.cli.output import print_table


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Check every claim of a dataset's manifest, or of all shards of a plan, against the files."
    parser = verbs.add_parser("verify", help=about, description=about)
    parser.example = "python -m data_tools verify data/demo/tokens/shq --deep"
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="prefix of data or packs, or folder of plan.json")
    parser.add_argument("--deep", action="store_true", help="read every byte: hashes, ids, ends of documents")
    parser.set_defaults(verb=_verify)


def _verify(options: argparse.Namespace) -> None:
    from data_tools.manifest import manifest_path
    from data_tools.pack_index import pack_manifest_path
    from data_tools.verify import prefixes_of, verify

    if pack_manifest_path(options.prefix).exists() and not manifest_path(options.prefix).exists():
        _verify_packs(options)
        return
    manifests = [verify(prefix, deep=options.deep) for prefix in prefixes_of(options.prefix)]
    left_out = sum(manifest.left_out for manifest in manifests)
    rows = [
        ["datasets", f"{len(manifests):,}"],
        ["documents", f"{sum(manifest.documents for manifest in manifests):,}"],
        ["tokens", f"{sum(manifest.tokens for manifest in manifests):,}"],
        *([["left out by --where", f"{left_out:,}"]] if left_out else []),
        ["read", "every byte" if options.deep else "sizes and indices; --deep reads every byte"],
    ]
    print_table(f"{options.prefix}: all that its manifest says is so", ["", ""], rows)


def _verify_packs(options: argparse.Namespace) -> None:
    from data_tools.verify_packs import verify_packs

    packs = verify_packs(options.prefix, deep=options.deep)
    rows = [
        ["rows", f"{packs.packs:,} of {packs.length:,} tokens"],
        ["pieces", f"{packs.pieces:,}"],
        ["tokens in rows", f"{packs.packed_tokens:,}"],
        ["read", "every byte of the index" if options.deep else "the index; --deep compares hashes too"],
    ]
    print_table(f"{options.prefix}: all that its manifest says is so", ["", ""], rows)
