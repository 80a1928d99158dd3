"""The verb `merge`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_tools.cli.output import print_table


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Write the documents of several datasets, or of all shards of a plan, as one dataset."
    parser = verbs.add_parser("merge", help=about, description=about)
    parser.example = (
        "python -m data_tools merge data/demo/tokens/ldq data/demo/tokens/shq --output data/demo/tokens/reasoning"
    )
    parser.add_argument(
        "prefixes",
        type=Path,
        nargs="+",
        metavar="PREFIX",
        help="prefixes of datasets, or folders of plan.json; in order",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX", help="prefix of the whole")
    parser.add_argument("--overwrite", action="store_true", help="replace whatever stands at PREFIX")
    parser.set_defaults(verb=_merge)


def _merge(options: argparse.Namespace) -> None:
    from data_tools.inspection import summary
    from data_tools.manifest import read_manifest
    from data_tools.merge import merge
    from data_tools.progress import shown
    from data_tools.verify import prefixes_of

    prefixes = [prefix for given in options.prefixes for prefix in prefixes_of(given)]
    total = sum(read_manifest(prefix).bin_bytes for prefix in prefixes)
    with shown(f"merge {options.output.name}", total) as progress:
        result = merge(prefixes, options.output, progress, overwrite=options.overwrite, command=options.command)
    state = "already done" if result.was_done else f"{len(prefixes):,} datasets in one"
    print_table(f"{options.output}: {state}", ["", ""], [list(row) for row in summary(result.manifest)])
