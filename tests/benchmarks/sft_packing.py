"""Trained tokens a second of fine-tuning on packed rows, and of the same conversations padded.

    python tests/benchmarks/sft_packing.py [--conversations 240] [--length 2048] [--threads 2]

Lengths are log-normal with a long tail, cut at a row; half of each conversation is trained on. `padded` gives each
conversation a row, `padded to the longest of 8` gives eight of them the length of the longest, in random order, as
collators do. Forward and backward of one step on one process, the better of two; CPU seconds, so that other work on
the machine counts little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import batched, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from megatron_ext.datasets.batch import Batch
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.step import run_microbatches
from tests.support.one_process import one_process
from tests.support.sft_project import make_sft_project, write_chat

MODEL = """\
name: benchmark
hybrid_layer_pattern: "M-M*M-M-"
hidden_size: 256
vocab_size: 100
ffn_hidden_size: 1024
num_attention_heads: 4
num_query_groups: 2
kv_channels: 64
mamba_num_heads: 8
mamba_head_dim: 64
mamba_state_dim: 64
mamba_num_groups: 1
"""


def main() -> None:
    """Prints the three ways and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=240)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        project = make_sft_project(Path(folder))
        (project.root / "model.yaml").write_text(MODEL)
        lengths = np.random.default_rng(0).lognormal(np.log(asked.length / 10), 0.9, asked.conversations)
        cut = np.clip(lengths.astype(int), 8, asked.length).tolist()
        write_chat(project, "c", [(length, [(length // 2, length)]) for length in cut])
        plan = project.plan(
            f"data.blend=[{{source: {folder}/c.yaml, share: 1.0}}]",
            f"budget.examples={asked.conversations}",
            f"training.sequence_length={asked.length}",
            "training.global_batch_size=100_000",
        )
        assert plan.sft is not None
        fill = 1 - plan.sft.padding / plan.batch.total_tokens
        print(f"{asked.conversations} conversations, {plan.sft.rows} rows of {asked.length}, {100 * fill:.2f} % filled")
        with one_process() as groups:
            torch.set_num_threads(asked.threads)
            parts = make_parts(plan, groups)
            packed = parts.cursor.next_step()
            ways = {
                "packed": packed,
                "padded": padded(packed, together=1, length=asked.length),
                "padded to the longest of 8": padded(packed, together=8, length=None),
            }
            speeds = {name: speed(parts, batches) for name, batches in ways.items()}
    for name, trained in speeds.items():
        print(f"{name:28} {trained:9,.0f} trained tokens / CPU s   packed is {speeds['packed'] / trained:.2f} x")


def padded(batches: Sequence[Batch], *, together: int, length: int | None) -> list[Batch]:
    """The conversations of packed rows in rows of their own; None pads to the longest of those together."""
    talks = [
        {name: getattr(batch, name)[0, low:high] for name in ("tokens", "labels", "loss_mask", "source_index")}
        for batch in batches
        for low, high in pairwise(batch.cu_seqlens or ())
        if batch.loss_mask[0, low:high].any()
    ]
    order = np.random.default_rng(1).permutation(len(talks)).tolist()
    made = []
    for group in batched([talks[number] for number in order], together):
        width = length or max(len(talk["tokens"]) for talk in group)
        stacked = {
            name: torch.stack([torch.nn.functional.pad(talk[name], (0, width - len(talk[name]))) for talk in group])
            for name in group[0]
        }
        positions = torch.arange(width).expand(len(group), -1)
        made.append(replace(batches[0], cu_seqlens=None, position_ids=positions, **stacked))
    return made


def speed(parts: Parts, batches: Sequence[Batch]) -> float:
    """Trained tokens a CPU second of forward and backward."""
    trained = sum(int((batch.loss_mask > 0).sum()) for batch in batches)
    seconds = []
    for _ in range(2):
        parts.model.zero_grad_buffer()
        began = time.process_time()
        for batch in batches:  # one at a time: core wants all microbatches of a call in one shape
            run_microbatches(parts, [batch], forward_only=False)
        seconds.append(time.process_time() - began)
    return trained / min(seconds)


if __name__ == "__main__":
    main()
