"""The verb `sample`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.cli.output import print_table, warn

if TYPE_CHECKING:
    from data_tools.samples.write import WrittenSample


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Make small real data sets on the spot: base, ldq, shq, each split into training and held-out rows."
    parser = verbs.add_parser("sample", help=about, description=about)
    parser.example = "python -m data_tools sample --out data/demo/raw"
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of NAME.jsonl and NAME.card.json"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the rows (default 0)")
    parser.add_argument("--only", metavar="NAMES", help="some of base,ldq,shq, separated by commas")
    parser.add_argument("--scale", type=float, default=1.0, help="times the default size (default 1)")
    parser.set_defaults(verb=_sample)


def _sample(options: argparse.Namespace) -> None:
    from data_tools.samples.command import make_samples

    written = make_samples(options.out, seed=options.seed, only=options.only, scale=options.scale)
    for sample in written:
        _warn_of_a_short_sample(sample, scale=options.scale)
        if not sample.held_out_rows:
            warn(f"{sample.card['name']}: none of {sample.card['rows']:,} rows is held out; raise --scale to validate")
    print_table(
        f"sample sources in {options.out}",
        ["source", "rows", "held out", "text bytes", "families", "left out"],
        [_row(sample) for sample in written],
    )


def _warn_of_a_short_sample(sample: WrittenSample, *, scale: float) -> None:
    from data_tools.samples.write import SOURCES

    name, there = sample.card["name"], sample.card["text_bytes"]
    wanted = round(SOURCES[name].default_bytes * scale)
    if there < wanted:
        warn(f"{name}: {there:,} bytes of text are all there is, of the {wanted:,} of --scale {scale:g}")


def _row(sample: WrittenSample) -> list[str]:
    card = sample.card
    left_out = ", ".join(f"{count:,} x {reason}" for reason, count in card["left_out"].items())
    return [
        card["name"],
        f"{card['rows']:,}",
        f"{sample.held_out_rows:,}",
        f"{card['text_bytes']:,}",
        str(len(card["families"])),
        "was there already" if sample.was_there else left_out,
    ]
