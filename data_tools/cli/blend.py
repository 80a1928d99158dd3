"""The verbs `plan` and `blend`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.cli.output import print_table, warn
from data_tools.errors import DataError, UsageError
from data_tools.quantities import format_count, parse_count

if TYPE_CHECKING:
    from data_tools.resolved_blend import BlendSource, ResolvedBlend

FORMS = ("megatron-args", "per-split-json", "bridge")


def add(verbs: Any) -> None:
    """Registers both verbs."""
    about = "Show how much of each source a blend reads, and how often."
    parser = verbs.add_parser("plan", help=about, description=about)
    parser.example = "python -m data_tools plan recipes/blends/lmq.yaml --tokens 80B"
    _add_blend(parser)
    parser.set_defaults(verb=_plan)
    about = "Write how much of each source a blend reads, also in the forms of other trainers."
    parser = verbs.add_parser("blend", help=about, description=about)
    parser.example = (
        "python -m data_tools blend recipes/blends/demo.yaml --tokens 800K --sequence-length 256 \\\n"
        "      --out data/demo/blend --export megatron-args"
    )
    _add_blend(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of blend_plan.json")
    parser.add_argument(
        "--export", choices=FORMS, action="append", default=[], help="also write what this trainer takes; repeatable"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace another plan and its exports in DIR")
    parser.set_defaults(verb=_blend)


def _add_blend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="BLEND.yaml", help="a file as under recipes/blends")
    parser.add_argument("--tokens", metavar="N", help="processed tokens: 400B, 1.5M; left out where the entries say it")
    parser.add_argument("--sequence-length", default="8192", metavar="N", help="tokens of a sample (default 8192)")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR", help="folder of the datasets (default data)"
    )


def _plan(options: argparse.Namespace) -> None:
    _show(_resolved(options))


def _blend(options: argparse.Namespace) -> None:
    from data_tools.blend_export import FILES, export, refuse_declared, warnings
    from data_tools.resolved_blend import FILE_NAME, changes_of_plan, write_plan

    plan = _resolved(options)
    if options.export:
        refuse_declared(plan)
    if options.overwrite:
        for name in (FILE_NAME, *FILES.values()):  # exports of another plan must not stand beside this one
            (options.out / name).unlink(missing_ok=True)
    elif changes := changes_of_plan(options.out, plan):
        lines = "\n  ".join(changes)
        raise DataError(f"{options.out}: holds another blend plan; give --overwrite, or another --out\n  {lines}")
    options.out.mkdir(parents=True, exist_ok=True)
    written = [export(plan, form, options.out) for form in dict.fromkeys(options.export)]
    written.append(write_plan(options.out, plan))
    for warning in warnings(plan) if options.export else []:
        warn(warning)
    print("wrote " + ", ".join(map(str, written)))
    _show(plan)


def _resolved(options: argparse.Namespace) -> ResolvedBlend:
    from data_tools.resolved_blend import plan_blend

    return plan_blend(
        options.file,
        tokens=None if options.tokens is None else _count("--tokens", options.tokens),
        sequence_length=_count("--sequence-length", options.sequence_length),
        data_root=options.data_root,
        command=options.command,
    )


def _count(option: str, text: str) -> int:
    try:
        count = parse_count(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    if not count:
        raise UsageError(f"{option}: 0 is too few; give at least 1")
    return count


def _show(plan: ResolvedBlend) -> None:
    for note in plan.notes:
        warn(note)
    print("domains: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in plan.domain_shares.items()))
    state = ", sizes declared: provisional" if plan.provisional else ""
    print_table(
        f"{plan.file}: {plan.tokens:,} tokens, {plan.samples:,} samples of {plan.sequence_length:,}{state}",
        ["source", "share %", "tokens", "samples", "epochs", "max", "has tokens", "domain"],
        [_row(source) for source in plan.sources],
    )


def _row(source: BlendSource) -> list[str]:
    state = " declared" if source.declared else f" in {len(source.shards)} shards" if source.shards[1:] else ""
    return [
        source.source,
        f"{100 * source.share:.2f}",
        format_count(source.tokens),
        f"{source.samples:,}",
        f"{source.epochs:.3g}",
        f"{source.max_epochs:g}",
        f"{format_count(source.has_tokens)}{state}",
        max(source.domains, key=lambda name: source.domains[name]),
    ]
