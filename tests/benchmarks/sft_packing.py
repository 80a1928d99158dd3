"""Trained tokens a second of fine-tuning on packed rows, and of the same conversations padded.

    python tests/benchmarks/sft_packing.py [--length 8192] [--rows 16] [--threads 2]

The set has the lengths of the paper's large diverse one: 550 tokens on average, 2 % above 4,096, in rows of 32,768
(docs/reference/paper.md). A log-normal of spread 1.6 has both. Lengths are scaled with `--length`, so that a padded
batch fits a laptop; half of each conversation is trained on. Conversations are drawn until the rows are full but for
0.2 %, so that no row is left half empty as at the end of any set; the fill of 100,000 conversations is printed beside.
All are trained on packed, and padded:

    one a row             each to the length of a row
    longest of 8          eight at a time in random order, to the longest of them, as collators do
    longest of 8, sorted  the same behind a sort by length within 50 batches, as samplers that group by length do

Forward and backward on one process. The ways take turns, a sixteenth of each at a time, and batches are made before
the clock runs. A row of one costs the same whatever it holds, so as many are run as there are packed ones, a random
part. At the end, the time of the isolation self-test that an sft stage runs before its first step, the least of three.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import batched, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_tools.packing import pack
from megatron_ext.datasets.batch import Batch
from megatron_ext.training.isolation import measure_isolation
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.step import run_microbatches
from tests.support.one_process import one_process
from tests.support.sft_project import make_sft_project, write_chat

MODEL = Path(__file__).parents[2] / "recipes" / "models" / "hybrid_tiny.yaml"
PAPER_LENGTH, PAPER_MEAN, SPREAD = 32_768, 550, 1.6
TURNS = 16
Talk = dict[str, torch.Tensor]


@dataclass
class Way:
    """Batches, and what they have cost so far."""

    batches: Sequence[Batch]
    trained: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def positions(self) -> int:
        """Tokens and padding of all batches."""
        return sum(batch.tokens.numel() for batch in self.batches)

    def run(self, parts: Parts, turn: int) -> None:
        """Trains on one part of the batches."""
        mine = self.batches[turn::TURNS]
        parts.model.zero_grad_buffer()
        began, cpu_began = time.perf_counter(), time.process_time()
        for batch in mine:  # one at a time: core wants all microbatches of a call in one shape
            run_microbatches(parts, [batch], forward_only=False)
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - cpu_began
        self.trained += sum(int((batch.loss_mask > 0).sum()) for batch in mine)


def main() -> None:
    """Prints the ways and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8_192)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        project = make_sft_project(Path(folder))
        (project.root / "model.yaml").write_text(MODEL.read_text())
        lengths = draw_lengths(asked.rows, asked.length)
        write_chat(project, "c", [(length, [(length // 2, length)]) for length in lengths])
        plan = project.plan(
            f"data.blend=[{{source: {folder}/c.yaml, share: 1.0}}]",
            f"budget.examples={len(lengths)}",
            f"training.sequence_length={asked.length}",
            f"training.global_batch_size={asked.rows}",
        )
        assert plan.sft is not None
        fill = 1 - plan.sft.padding / plan.batch.total_tokens
        print(
            f"{len(lengths):,} conversations of {np.mean(lengths):.0f} tokens on average and {max(lengths):,} at most"
        )
        print(f"in {plan.sft.rows:,} rows of {asked.length:,}: {100 * fill:.2f} % filled", end="; ")
        many = pack(random_lengths(100_000, asked.length), length=asked.length)
        print(f"100,000 such conversations: {100 * many.fill_ratio:.2f} %")
        with one_process() as groups:
            torch.set_num_threads(asked.threads)
            parts = make_parts(plan, groups)
            compare(parts)
            wall, cpu = min(seconds_of_self_test(parts) for _ in range(3))
            print(f"isolation self-test: {1000 * wall:.0f} ms, {1000 * cpu:.0f} ms of CPU time")


def random_lengths(count: int, row: int) -> NDArray[np.int64]:
    """Tokens of conversations, at least 8 and at most a row."""
    mean = PAPER_MEAN * row / PAPER_LENGTH
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD, count)
    return np.clip(drawn.astype(np.int64), 8, row)


def draw_lengths(rows: int, row: int) -> list[int]:
    """Of as many conversations as fill so many rows but for 0.2 %; the last one is cut where it would overflow."""
    drawn = random_lengths(rows * row // 8, row)
    ends = np.minimum(np.cumsum(drawn), int(0.998 * rows * row))
    lengths = np.diff(ends, prepend=0)
    return lengths[lengths >= 8].tolist()


def compare(parts: Parts) -> None:
    """Trains in all ways in turn, and prints what each took."""
    packed = parts.cursor.next_step()
    talks = talks_of(packed)
    shuffled = [talks[number] for number in np.random.default_rng(1).permutation(len(talks)).tolist()]
    grouped = [talk for some in batched(shuffled, 8 * 50) for talk in sorted(some, key=size_of, reverse=True)]
    row = packed[0].tokens.shape[1]
    ways = {
        "packed": Way(packed),
        "longest of 8": Way(padded(packed[0], shuffled, together=8)),
        "longest of 8, sorted": Way(padded(packed[0], grouped, together=8)),
        "one a row": Way(padded(packed[0], shuffled[: len(packed)], together=1, width=row)),
    }
    for way in ways.values():
        Way(way.batches[:1]).run(parts, 0)  # the first of a shape allocates
    for turn in range(TURNS):
        for way in ways.values():
            way.run(parts, turn)
    base = ways["packed"]
    for name, way in ways.items():
        speed, ratio = way.trained / way.seconds, base.trained / base.seconds * way.seconds / way.trained
        cpu = base.trained / base.cpu_seconds * way.cpu_seconds / way.trained
        a_position = 1e6 * way.cpu_seconds / way.positions
        print(
            f"{name:21} {speed:8,.0f} trained tokens/s   packed is {ratio:5.2f} x ({cpu:5.2f} x in CPU time)   "
            f"{way.positions:9,} positions, {a_position:.0f} CPU us each"
        )


def talks_of(batches: Sequence[Batch]) -> list[Talk]:
    """The conversations of packed rows, without padding."""
    return [
        {name: getattr(batch, name)[0, low:high] for name in ("tokens", "labels", "loss_mask", "source_index")}
        for batch in batches
        for low, high in pairwise(batch.cu_seqlens or ())
        if batch.loss_mask[0, low:high].any()
    ]


def size_of(talk: Talk) -> int:
    """Its tokens."""
    return len(talk["tokens"])


def padded(like: Batch, talks: Sequence[Talk], *, together: int, width: int | None = None) -> list[Batch]:
    """Conversations in rows of their own, so many a batch; without a width as long as the longest of the batch."""
    made = []
    for group in batched(talks, together):
        wide = width or max(map(size_of, group))
        stacked = {
            name: torch.stack([torch.nn.functional.pad(talk[name], (0, wide - size_of(talk))) for talk in group])
            for name in group[0]
        }
        made.append(replace(like, cu_seqlens=None, position_ids=torch.arange(wide).expand(len(group), -1), **stacked))
    return made


def seconds_of_self_test(parts: Parts) -> tuple[float, float]:
    """Of one isolation self-test on the model, and of CPU time."""
    began, cpu_began = time.perf_counter(), time.process_time()
    assert measure_isolation(parts.model, parts.plan, parts.groups).holds
    return time.perf_counter() - began, time.process_time() - cpu_began


if __name__ == "__main__":
    main()
