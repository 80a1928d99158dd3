"""The verb `sample`."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.cli.output import print_table, warn

if TYPE_CHECKING:
    from data_tools.samples.write import WrittenSample


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Make real data sets on the spot: base, ldq, shq, form to train on, eval, rl, digit, digit_eval prompts."
    parser = verbs.add_parser("sample", help=about, description=about)
    parser.example = "python -m data_tools sample --out data/demo/raw"
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of NAME.jsonl and NAME.card.json"
    )
    parser.add_argument(
        "--size", choices=("small", "full"), default="small", help="small for trials (default), full: over 30M tokens"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the rows (default 0)")
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help="some of base,ldq,shq,eval,rl,digit,digit_eval,form (default: all of these), or of the miniature's "
        "mini_base,mini_ldq,mini_shq,mini_general,mini_math,mini_code,mini_new,mini_rl; separated by commas",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="times the rows of the size (default 1)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: all cores for full, 1 for small); same bytes"
    )
    parser.set_defaults(verb=_sample)


def _sample(options: argparse.Namespace) -> None:
    from data_tools.samples.command import make_samples
    from data_tools.samples.write import SOURCES, Request

    start, cpu_start_s = time.monotonic(), _cpu_s()
    cores = len(os.sched_getaffinity(0)) if options.size == "full" else 1
    request = Request(seed=options.seed, size=options.size, scale=options.scale)
    workers = cores if options.workers is None else options.workers
    written = make_samples(options.out, request, only=options.only, workers=workers)
    for sample in written:
        if not sample.held_out_rows:
            warn(f"{sample.card['name']}: none of {sample.card['rows']:,} rows is held out; raise --scale to validate")
        if short := sample.short_families(request):
            said = ", ".join(f"{family} {rows:,}" for family, rows in short.items())
            wanted = request.num_rows(SOURCES[sample.card["name"]])
            warn(f"{sample.card['name']}: no more rows than these, of {wanted:,} asked for: {said}")
    took = f"{time.monotonic() - start:.0f} s, {_cpu_s() - cpu_start_s:.0f} CPU s in all"
    print(f"{took}; what was left out and why: NAME.card.json")
    print_table(
        f"samples in {options.out}",
        ["source", "rows", "held out", "text bytes", "families", "shares of text", "made now"],
        [_row(sample) for sample in written],
    )


def _cpu_s() -> float:
    """User and system time of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _row(sample: WrittenSample) -> list[str]:
    card = sample.card
    shares = ", ".join(f"{style} {100 * share['text']:.0f} %" for style, share in card["shares"].items())
    return [
        card["name"],
        f"{card['rows']:,}",
        f"{sample.held_out_rows:,}",
        f"{card['text_bytes']:,}",
        str(len(card["families"])),
        shares,
        "was there already" if sample.was_there else "yes",
    ]
