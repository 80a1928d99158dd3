"""Rows per second of our blended cursor against stock Megatron-Core's blended GPTDataset.

    OMP_NUM_THREADS=1 python tests/benchmarks/cursor_read.py [--tokens 16_000_000] [--rounds 15] [--cold]

Both read the same two synthetic sources (0.8 and 0.2; documents of about 700 tokens, lognormal), warm
from the page cache or, with --cold, dropped from it before every round. Both make the same
microbatches: tokens, labels, loss mask, position ids. A round of one and a round of the other in turn,
so that a noisy machine disturbs both alike. Stock is measured with the collation that its DataLoader
does and, favourably to it, without any. Printed: the median of each, the median ratio of the rounds,
and what a round read from the disk.
"""

from __future__ import annotations

import argparse
import logging
import mmap
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from megatron_ext.plan.stage_plan import StagePlan
from tests.support.sources import plan_reading, write_source

SHARES = {"large": 0.8, "small": 0.2}
MICRO_BATCH_SIZE, MICROBATCHES, WARM_UP = 4, 16, 2
VOCAB_SIZE = 32_000


def main() -> None:
    """Measures sequence lengths 512 and 4096."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_000_000, help="tokens of each source")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before every round")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of 64 rows that are timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate(SHARES):
            _write(Path(folder) / name, arguments.tokens, seed)
        for sequence_length in (512, 4096):
            _compare(Path(folder), sequence_length, arguments.rounds, is_cold=arguments.cold)


def _write(prefix: Path, num_tokens: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = generator.lognormal(mean=6.0, sigma=1.0, size=num_tokens // 650).astype(np.int64) + 2
    tokens = generator.integers(1, VOCAB_SIZE, size=int(lengths.sum()))
    tokens[np.cumsum(lengths) - 1] = 0
    write_source(prefix, np.split(tokens, np.cumsum(lengths)[:-1]))


def _compare(folder: Path, sequence_length: int, rounds: int, *, is_cold: bool) -> None:
    plan = _plan(folder, sequence_length, rounds + WARM_UP)
    began = time.perf_counter()
    cursor = BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1)
    cursor_open_s = time.perf_counter() - began
    began = time.perf_counter()
    stock = _stock(folder, plan)
    stock_open_s = time.perf_counter() - began
    indices = iter(range(2 * plan.batch.total_samples))
    sides: dict[str, Callable[[], Any]] = {
        "cursor": cursor.next_step,
        "stock": lambda: [default_collate(rows) for rows in _microbatches(stock, indices)],
        "stock without collation": lambda: list(_microbatches(stock, indices)),
    }
    rows_per_s: dict[str, list[float]] = {name: [] for name in sides}
    disk_bytes = dict.fromkeys(sides, 0)
    for _ in range(rounds + WARM_UP):
        for name, read in sides.items():
            if is_cold:
                _drop_from_page_cache(folder, stock)
            from_disk, began = _disk_bytes(), time.perf_counter()
            read()
            disk_bytes[name] += _disk_bytes() - from_disk
            rows_per_s[name].append(MICRO_BATCH_SIZE * MICROBATCHES / (time.perf_counter() - began))
    print(
        f"sequence {sequence_length}, opening: cursor {cursor_open_s * 1e3:.0f} ms, stock {stock_open_s * 1e3:.0f} ms"
    )
    ours = rows_per_s["cursor"][WARM_UP:]
    for name, rates in rows_per_s.items():
        ratio = statistics.median(mine / other for mine, other in zip(ours, rates[WARM_UP:], strict=True))
        print(
            f"  {name:24} {statistics.median(rates[WARM_UP:]):9,.0f} rows/s   cursor / this {ratio:.2f}   "
            f"{disk_bytes[name] / len(rates) / 1e6:.1f} MB from disk a round"
        )


def _drop_from_page_cache(folder: Path, stock: Any) -> None:
    """Only pages that nobody has mapped can be dropped, so core's mappings give them up first."""
    for dataset in stock.datasets:
        dataset.dataset.bin_reader._bin_buffer_mmap.base.madvise(mmap.MADV_DONTNEED)
        dataset.dataset.index.bin_buffer_mmap.base.madvise(mmap.MADV_DONTNEED)
    for path in [*folder.glob("*.bin"), *folder.glob("*.idx")]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _disk_bytes() -> int:
    """Bytes that this process had the disk read."""
    return int(re.findall(r"read_bytes: (\d+)", Path("/proc/self/io").read_text())[0])


def _plan(folder: Path, sequence_length: int, steps: int) -> StagePlan:
    rows = MICRO_BATCH_SIZE * MICROBATCHES
    large = round(SHARES["large"] * steps * rows)
    samples = {"large": large, "small": steps * rows - large}
    return plan_reading(
        {name: (folder / name, samples[name]) for name in SHARES},
        global_batch_size=rows,
        micro_batch_size=MICRO_BATCH_SIZE,
        batch={"sequence_length": sequence_length},
        model={"vocab_size": VOCAB_SIZE},
    )


def _stock(folder: Path, plan: StagePlan) -> Any:
    tokenizer = SimpleNamespace(eod=0, pad=-1, vocab_size=VOCAB_SIZE, unique_identifiers={"name": "benchmark"})
    config = GPTDatasetConfig(
        random_seed=plan.seed,
        sequence_length=plan.batch.sequence_length,
        blend=([str(folder / name) for name in SHARES], list(SHARES.values())),
        split="1,0,0",
        path_to_cache=None,
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        mmap_bin_files=True,
    )
    sizes = (2 * plan.batch.total_samples, 0, 0)
    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[0]


def _microbatches(stock: Any, indices: Iterator[int]) -> Iterator[list[dict[str, torch.Tensor]]]:
    for _ in range(MICROBATCHES):
        yield [stock[next(indices)] for _ in range(MICRO_BATCH_SIZE)]


if __name__ == "__main__":
    main()
