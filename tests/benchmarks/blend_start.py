"""How fast a large blend starts, and what it holds in memory.

    OMP_NUM_THREADS=1 python tests/benchmarks/blend_start.py [--samples 1e9] [--documents 5e7] [--packing best_fit]
        [--passes 1] [--isolation full]

The index files are true, 20 bytes a document; the tokens are holes in sparse files and take no disk.
Two processes, one after the other: one starts at the first step, one resumes in the middle of the
stage from a state of 3 numbers a source. Each imports torch and core first; what is counted begins
behind that: opening the sources, and the first batch. Then more steps, for what stays in memory, and two
ledgers: the first of a process counts the documents that were read before it, the next only what came since.
Memory is the growth of the peak resident size; of it, the index pages are the page cache's.
With `--packing best_fit` the rows of all sources are counted first, as `megatron-ext prepare` does it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import megatron.core.datasets.indexed_dataset  # noqa: F401  (what is measured comes after it)
import numpy as np
import torch

from data_tools.dataset import read_dataset
from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.datasets.ledger import ledger_of
from megatron_ext.plan.packed_rows import count_rows, sum_counts
from megatron_ext.plan.stage_plan import StagePlan
from tests.support.sources import plan_reading, write_sparse_source

ROWS = 256


def main() -> None:
    """Generates the sources and measures both starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=float, default=1e9, help="samples of one pass over all sources")
    parser.add_argument("--passes", type=int, default=1, help="passes that the stage makes")
    parser.add_argument("--isolation", choices=("none", "full"), default="none", help="document_isolation")
    parser.add_argument("--sources", type=int, default=200)
    parser.add_argument("--documents", type=float, default=5e7, help="documents of all sources together")
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40, help=f"steps of {ROWS} rows read after the first")
    parser.add_argument("--packing", choices=["none", "best_fit"], default="none")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "START"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        folder, start = arguments.measure
        _measure(Path(folder), start, arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        tokens = _generate(Path(folder), arguments)
        print(
            f"{arguments.sources} sources, {arguments.documents:.3g} documents, {arguments.samples:.3g} samples of "
            f"{arguments.sequence_length} tokens ({tokens:.3g} tokens), made in {time.perf_counter() - began:.0f} s"
        )
        if arguments.packing != "none":
            _prepare(Path(folder), arguments.sequence_length)
        for start in ("first step", "middle"):
            subprocess.run([sys.executable, *sys.argv, "--measure", folder, start], check=True)


def _generate(folder: Path, arguments: argparse.Namespace) -> int:
    """Writes the sources, the largest three times the smallest, and how many samples each gives."""
    parts = np.linspace(1, 3, arguments.sources)
    documents = (parts / parts.sum() * arguments.documents).astype(np.int64)
    mean = arguments.samples * arguments.sequence_length / arguments.documents
    generator = np.random.default_rng(0)
    samples, tokens = {}, 0
    for number, count in enumerate(documents.tolist()):
        lengths = np.maximum(1, generator.lognormal(sigma=1.0, size=count) * mean / np.exp(0.5)).astype(np.int32)
        manifest = write_sparse_source(folder / f"source{number:03}", lengths)
        samples[f"source{number:03}"] = manifest.tokens // arguments.sequence_length
        tokens += manifest.tokens
    samples[f"source{len(documents) - 1:03}"] -= sum(samples.values()) % ROWS  # whole steps
    (folder / "samples.json").write_text(json.dumps(samples))
    return tokens


def _prepare(folder: Path, sequence_length: int) -> None:
    began, counts = time.process_time(), []
    for name in json.loads((folder / "samples.json").read_text()):
        counts += count_rows(
            read_dataset(folder / name),
            sequence_length=sequence_length,
            long_documents="split",
            store=folder,
            is_kept=True,
        )
    taken_s, total = time.process_time() - began, sum_counts(counts)
    fill = 100 * total.tokens / (total.rows * sequence_length)
    print(
        f"prepare: {total.documents:,} documents in {total.rows:,} rows, {fill:.3f} % filled: CPU {taken_s:.1f} s, "
        f"{1e6 * taken_s / total.documents:.2f} s a million documents"
    )


def _measure(folder: Path, start: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    samples, steps = json.loads((folder / "samples.json").read_text()), arguments.steps
    plan = plan_reading(
        {name: (folder / name, arguments.passes * count) for name, count in samples.items()},
        global_batch_size=ROWS,
        batch={"sequence_length": arguments.sequence_length},
        micro_batch_size=4,
        data={"packing": arguments.packing, "store": str(folder), "document_isolation": arguments.isolation},
    )
    state = _middle(plan) if start == "middle" else None
    held, cpu_s, began = _memory(), time.process_time(), time.perf_counter()
    cursor = BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1)
    if state is not None:
        cursor.load_state_dict(json.loads(state))
    opened_s = time.perf_counter() - began
    cursor.next_step()
    first_s, first_cpu_s, first = time.perf_counter() - began, time.process_time() - cpu_s, _memory()
    for _ in range(steps):
        cursor.next_step()
    rows_per_cpu_s = steps * ROWS / (time.process_time() - cpu_s - first_cpu_s)
    print(
        f"{start}: open {opened_s:.2f} s, first batch after {first_s:.2f} s (CPU {first_cpu_s:.2f} s), "
        f"memory {_growth(held, first)}; after {steps} steps more {_growth(held, _memory())}, "
        f"{rows_per_cpu_s:,.0f} rows a CPU second"
    )
    for number in ("first", "next"):
        cpu_s, began = time.process_time(), time.perf_counter()
        ledger_of(plan, cursor)
        elapsed_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
        print(f"  {number} ledger {elapsed_s:.2f} s (CPU {cpu_s:.2f} s), memory {_growth(held, _memory())}")
        cursor.next_step()


def _middle(plan: StagePlan) -> str:
    """The state of a run that stands near a random place of every source, as its checkpoint would hold it."""
    state: dict[str, Any] = BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1).state_dict()
    dice = random.Random(0)
    share = dice.uniform(0.3, 0.7)
    for place, source in enumerate(state["sources"]):
        state["samples"][place] = count = round(plan.data.sources[place].samples * share)
        cursor = source["cursor"]
        if plan.data.packing == "none":
            of_one_pass = plan.data.sources[place].tokens // cursor["sequence_length"]
            cursor["epoch"], left = divmod(count, of_one_pass)
            cursor["window"], cursor["position"] = divmod(left, cursor["window_samples"])
        else:
            cursor["window"] = int(share * cursor["windows"])
    state["begins"] = [[0] * len(state["sources"])]
    return json.dumps(state)


def _memory() -> dict[str, int]:
    """Resident bytes: the peak so far, and at present what is this process's own."""
    status = Path("/proc/self/status").read_text()
    fields = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", status)}
    return {"peak": fields["VmHWM"], "own": fields["RssAnon"]}


def _growth(before: dict[str, int], after: dict[str, int]) -> str:
    peak, own = ((after[key] - before[key]) / 1e6 for key in ("peak", "own"))
    return f"{peak:.0f} MB (own {own:.0f} MB)"


if __name__ == "__main__":
    main()
