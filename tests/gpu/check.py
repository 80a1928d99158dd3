"""What can be said about this machine's GPUs in at most fifteen minutes: tests/gpu, then a training step's speed.

    make gpu-check                       one GPU
    make gpu-check GPUS=8                layouts, network and larger models over eight, too
    python tests/gpu/check.py --list     what there is; some parts are run by their name only
    python tests/gpu/check.py --only 'loss curves' --seconds 1000
    python tests/gpu/check.py --resume   what has passed already, with this code on these GPUs, is not run again

Installs nothing. Tests run side by side, benchmarks after them, alone. Writes `gpu-check/report.md` and
`report.json`, beside the last report recorded of such GPUs; says what is missing; what it does not reach in time is
"not run: out of time". Exit codes: 0 all that could run passed, 1 something failed or did not end, 2 no such part or
fewer GPUs, 4 no GPU (make turns any of them but 0 into its own 2).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.gpu.part import Part, Wanted, keep, kept, run_part, said  # noqa: E402 (this file is run as a program too)
from tests.gpu.parts import chosen, parts_of  # noqa: E402
from tests.gpu.report import machine, stamp_of, write_report  # noqa: E402

TOTAL_S = 900.0
SPARE_S = 10.0
"""Kept back for the report."""


def main(argv: list[str] | None = None) -> int:
    """Runs the parts and writes the report."""
    args = _parser().parse_args(argv)
    deadline = time.monotonic() + args.seconds - SPARE_S
    from megatron_ext.runtime.device import describe_gpus, has_gpu
    from megatron_ext.runtime.extensions import missing_for_te

    missing = list(missing_for_te())
    parts = parts_of(args.out, gpus=args.gpus, cores=os.cpu_count() or 1, missing=missing)
    if args.list:
        print("\n".join(f"{part.name}{'   (by name only)' if part.on_request else ''}" for part in parts))
        return 0
    try:
        parts = chosen(parts, args.only)
    except ValueError as error:
        print(_of_more_gpus(args, parts) or error)
        return 2
    for what in missing:
        print(f"missing: {what}")
    if not has_gpu():
        print("no GPU: nothing was run. requirements/gpu.md says what to install where there is one.")
        return 4
    if (found := len(describe_gpus())) < args.gpus:
        print(f"--gpus {args.gpus}: only {found} are visible here")
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    facts = machine(missing, gpus=args.gpus)
    cores = os.cpu_count() or 1
    done = run_all(parts, args.out / "parts", stamp_of(facts), deadline, cores=cores, is_resumed=args.resume)
    write_report(args.out, facts, done, is_recorded=args.record)
    return exit_code(done)


def _of_more_gpus(args: argparse.Namespace, parts: Sequence[Wanted]) -> str:
    """That a part which was asked for is one of several GPUs."""
    more = {part.name for part in parts_of(args.out, gpus=8, cores=1, missing=())} - {part.name for part in parts}
    named = [name for name in args.only if name in more]
    return f"part {named[0]!r} is one of several GPUs: say how many, such as --gpus 8" if named else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1, help="GPUs to use (default: 1)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "gpu-check", help="folder of the report")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="after this long nothing is running any more")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="this part; may be given again")
    parser.add_argument("--list", action="store_true", help="print the parts and stop")
    parser.add_argument("--resume", action="store_true", help="leave out what has passed with this code on these GPUs")
    parser.add_argument(
        "--record",
        action="store_true",
        help="put this report, with these parts alone, in tests/gpu/reports in place of the last, to compare with",
    )
    return parser


def run_all(
    parts: Sequence[Wanted],
    folder: Path,
    stamp: Mapping[str, Any],
    deadline: float,
    *,
    cores: int,
    is_resumed: bool = False,
) -> list[Part]:
    """Runs what may run beside others, as many as the cores allow, then one after another what measures.

    Args:
        parts: In the order of the report.
        folder: Keeps each part as soon as it has ended.
        stamp: Of machine and code.
        deadline: On the monotonic clock; what is running then is ended.
        cores: Of the machine.
        is_resumed: Whether parts that passed under this stamp are taken as they are.
    """

    def run(wanted: Wanted) -> Part:
        before = kept(folder, wanted.name, stamp) if is_resumed else None
        if before is not None:
            return said(before)
        return keep(folder, run_part(wanted, deadline), stamp)

    done: dict[str, Part] = {}
    with ThreadPoolExecutor(max(1, cores // 3)) as pool:
        running = {wanted.name: pool.submit(run, wanted) for wanted in parts if not wanted.alone}
        done = {name: part.result() for name, part in running.items()}
    done |= {wanted.name: run(wanted) for wanted in parts if wanted.alone}
    return [done[wanted.name] for wanted in parts]


def exit_code(parts: list[Part]) -> int:
    """1 when a part failed; a part that hangs has failed too."""
    return int(any(part.status.startswith("failed") for part in parts))


if __name__ == "__main__":
    sys.exit(main())
