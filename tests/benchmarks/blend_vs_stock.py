"""What it takes to build a blend: our cursors against stock `BlendedMegatronDatasetBuilder`.

    OMP_NUM_THREADS=1 python tests/benchmarks/blend_vs_stock.py [--samples 1e6 1e7] [--sources 2 20 200]

Each side builds in a process of its own, after importing torch and core: CPU time until the first row
can be asked for, growth of the peak resident size, then rows a second over 20 steps of 64 rows (stock
with its collation). Documents have 10,240 tokens on average, samples 512; the index files are true, the
tokens holes. Stock builds without an index that an earlier run left, and reads one pass, as we do.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from torch.utils.data import default_collate

from megatron_ext.datasets.blended import BlendedCursor
from tests.support.sources import plan_reading, write_sparse_source

LENGTH, MEAN_DOCUMENT, ROWS, MICRO_BATCH_SIZE, STEPS = 512, 10_240, 64, 4, 20


def main() -> None:
    """Measures every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--sources", type=int, nargs="+", default=[2, 20, 200])
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        _measure(Path(arguments.measure[0]), arguments.measure[1])
        return
    for samples in arguments.samples:
        for sources in arguments.sources:
            with tempfile.TemporaryDirectory() as folder:
                _generate(Path(folder), int(samples), sources)
                ours, stock = (_run(folder, side) for side in ("cursor", "stock"))
            print(
                f"{samples:.0e} samples, {sources:3} sources: CPU {ours['cpu_s']:.3f} s against {stock['cpu_s']:.3f} s "
                f"({stock['cpu_s'] / ours['cpu_s']:.0f}x), memory {ours['mb']:.0f} against {stock['mb']:.0f} MB "
                f"({stock['mb'] / ours['mb']:.1f}x), reading {ours['rows_per_s']:,.0f} against "
                f"{stock['rows_per_s']:,.0f} rows/s ({ours['rows_per_s'] / stock['rows_per_s']:.2f}x)",
                flush=True,
            )


def _generate(folder: Path, samples: int, sources: int) -> None:
    """Writes sources of equal size with a little more than the tokens that are asked for."""
    generator = np.random.default_rng(0)
    num_documents = round(1.02 * samples * LENGTH / MEAN_DOCUMENT / sources)
    planned = {}
    for number in range(sources):
        lengths = np.maximum(1, generator.lognormal(sigma=1.0, size=num_documents)) * MEAN_DOCUMENT / np.exp(0.5)
        write_sparse_source(folder / f"source{number:03}", lengths.astype(np.int32))
        planned[f"source{number:03}"] = samples // sources // ROWS * ROWS
    (folder / "samples.json").write_text(json.dumps(planned))


def _run(folder: str, side: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", folder, side]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def _measure(folder: Path, side: str) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    planned = json.loads((folder / "samples.json").read_text())
    open_side = {"cursor": _cursor, "stock": _stock}[side]
    peak, cpu_s = _peak_bytes(), time.process_time()
    next_step = open_side(folder, planned)
    next_step()
    cpu_s, growth = time.process_time() - cpu_s, _peak_bytes() - peak
    next_step()
    began = time.perf_counter()
    for _ in range(STEPS):
        next_step()
    rows_per_s = STEPS * ROWS / (time.perf_counter() - began)
    print(json.dumps({"cpu_s": cpu_s, "mb": growth / 1e6, "rows_per_s": rows_per_s}))


def _cursor(folder: Path, planned: dict[str, int]) -> Any:
    plan = plan_reading(
        {name: (folder / name, samples) for name, samples in planned.items()},
        global_batch_size=ROWS,
        micro_batch_size=MICRO_BATCH_SIZE,
        batch={"sequence_length": LENGTH},
    )
    return BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1).next_step


def _stock(folder: Path, planned: dict[str, int]) -> Any:
    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=LENGTH,
        blend=([str(folder / name) for name in planned], list(map(float, planned.values()))),
        split="1,0,0",
        path_to_cache=str(folder / "cache"),
        tokenizer=SimpleNamespace(eod=1, pad=-1, vocab_size=120, unique_identifiers={}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        mmap_bin_files=True,
    )
    sizes = (sum(planned.values()), 0, 0)
    dataset: Any = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[0]
    places = iter(range(len(dataset)))

    def next_step() -> None:
        for _ in range(ROWS // MICRO_BATCH_SIZE):
            default_collate([dataset[next(places)] for _ in range(MICRO_BATCH_SIZE)])

    return next_step


def _peak_bytes() -> int:
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


if __name__ == "__main__":
    main()
