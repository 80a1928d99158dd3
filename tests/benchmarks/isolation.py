"""CPU time of a training step on rows of several documents, kept apart, relative to the same rows run on.

    OMP_NUM_THREADS=1 python tests/benchmarks/isolation.py

One row of 2048 tokens through the demo's kind of hybrid, forward and backward, the three settings in turn;
the median of each over the rounds. Without isolation the code path is that of a build that knows none.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from megatron_ext.datasets.packed_params import Reset, packed_params
from megatron_ext.models.build import build_model
from tests.support.one_process import one_process, random_tokens
from tests.support.plans import make_plan

LENGTH, ROUNDS = 2048, 5
MODEL: dict[str, Any] = {
    "hybrid_layer_pattern": "M-M*M-M*",
    "hidden_size": 256,
    "ffn_hidden_size": 1024,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 64,
    "mamba_num_heads": 8,
    "mamba_head_dim": 64,
    "mamba_state_dim": 64,
    "mamba_num_groups": 1,
}
SETTINGS: tuple[Reset | None, ...] = (None, "attention", "full")


def main() -> None:
    """Prints one line a number of documents."""
    print(f"CPU time of one step over {LENGTH} tokens, relative to document_isolation none")
    with one_process() as groups:
        model = build_model(make_plan(model=MODEL, batch={"sequence_length": LENGTH}), groups)
        tokens, positions = random_tokens(1, LENGTH), torch.arange(LENGTH)[None]

        def step(reset: Reset | None, places: list[int]) -> float:
            apart = (
                {} if reset is None else {"packed_seq_params": packed_params(places, total_tokens=LENGTH, reset=reset)}
            )
            model.zero_grad(set_to_none=True)
            began = time.process_time()
            model(tokens, positions, None, labels=tokens, **apart).mean().backward()
            return time.process_time() - began

        for documents in (1, 4, 16, 50):
            places = [number * LENGTH // documents for number in range(documents + 1)]
            seconds: dict[Reset | None, list[float]] = {reset: [] for reset in SETTINGS}
            for _ in range(ROUNDS):
                for reset in SETTINGS:
                    seconds[reset].append(step(reset, places))
            none, attention, full = (statistics.median(seconds[reset]) for reset in SETTINGS)
            ratios = f"attention {attention / none:.2f}, full {full / none:.2f}"
            print(f"  {documents:>3} documents: none {none:.3f} s, {ratios}")


if __name__ == "__main__":
    main()
