"""CPU time and fill of `data_tools.packing` on 1e6 conversations, against TRL's best-fit-decreasing.

    python tests/benchmarks/pack.py [--trl trl/data_utils.py] [--conversations 1_000_000] [--rounds 3]

Lengths are lognormal with median 6,000, cut at the pack's length. TRL is no dependency of ours: fetch it
yourself (`pip download --no-deps trl`, unpack the wheel) and name its data_utils.py; without it that row
says "not measured". Of TRL only the sorting and the binning run, its own lines, taken from the source: it
copies all tokens besides, which is left out in its favour. Both run in turn, the median counts.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from data_tools.packing import pack

MEDIAN, SPREAD = 6_000, 0.83


def main() -> None:
    """Prints a row an algorithm, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, help="data_utils.py of TRL")
    parser.add_argument("--conversations", type=int, default=1_000_000)
    parser.add_argument("--length", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    drawn = generator.lognormal(np.log(MEDIAN), SPREAD, options.conversations).astype(np.int64) + 1
    lengths = np.minimum(drawn, options.length)
    print(f"{len(lengths):,} conversations, median {np.median(lengths):,.0f}, pack length {options.length:,}")
    sides: dict[str, Callable[[], int]] = {"bfd": lambda: pack(lengths, length=options.length).packs}
    if options.trl:
        binning = trl_binning(options.trl)
        sides["TRL"] = lambda: binning(lengths, options.length)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    packs: dict[str, int] = {}
    for _ in range(options.rounds):
        for name, run in sides.items():
            began = time.process_time()
            packs[name] = run()
            seconds[name].append(time.process_time() - began)
    for algorithm in ("bf-shuffle", "concat"):
        began = time.process_time()
        packs[algorithm] = pack(lengths, length=options.length, algorithm=algorithm).packs
        seconds[algorithm] = [time.process_time() - began]
    for name, times in seconds.items():
        fill = 100 * lengths.sum() / (packs[name] * options.length)
        print(f"  {name:10} {statistics.median(times):7.2f} CPU s   fill {fill:.3f} %   {packs[name]:,} packs")
    if options.trl:
        print(f"  TRL / bfd  {statistics.median(seconds['TRL']) / statistics.median(seconds['bfd']):.1f}x")
    else:
        print("  TRL        not measured: give --trl")


def trl_binning(source: Path) -> Callable[[np.ndarray[Any, Any], int], int]:
    """The statements of TRL's `_pack_bfd` from its sort to the end of its loop, as a function of lengths."""
    import pyarrow as pa
    import pyarrow.compute as pc

    tree = ast.parse(source.read_text())
    named = {getattr(node, "name", ""): node for node in tree.body}
    packer: Any = named["_pack_bfd"]
    is_sort = [isinstance(node, ast.Assign) and "make_struct" in ast.unparse(node) for node in packer.body]
    is_loop = [isinstance(node, ast.For) for node in packer.body]
    body = packer.body[is_sort.index(True) : is_loop.index(True) + 1]
    names: dict[str, Any] = {"pc": pc, "defaultdict": defaultdict, "deque": deque}
    exec(compile(ast.Module([named["_SegmentTree"]], []), str(source), "exec"), names)
    as_function = ast.parse("def binning(lengths, ids, seq_length):\n    pass\n    return bins")
    function: Any = as_function.body[0]
    function.body[0:1] = body
    code = compile(ast.fix_missing_locations(as_function), str(source), "exec")
    exec(code, names)
    return lambda lengths, length: len(names["binning"](pa.array(lengths), pa.array(np.arange(len(lengths))), length))


if __name__ == "__main__":
    main()
