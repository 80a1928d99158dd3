"""Step time of the loop against ten lines of plain torch: hybrid_tiny, sequence 512, one process.

    OMP_NUM_THREADS=2 python tests/benchmarks/loop_vs_plain_torch.py [--steps 30]

Both sides train the same model on the same batches, a step of one and a step of the other in turn, so
that a noisy machine disturbs both alike. Printed: the median of each, their ratio, and the ratio of CPU
times. Asked of the loop: at most 1.10.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from data_tools.strict_yaml import load_yaml
from megatron_ext.models.build import build_model
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.training.parts import make_parts
from megatron_ext.training.step import train_step
from tests.support.plain_torch import make_adamw, plain_step
from tests.support.plans import make_plan
from tests.support.sources import plan_reading, write_source

MODEL = Path(__file__).parents[2] / "recipes" / "models" / "hybrid_tiny.yaml"
SEQUENCE_LENGTH, GLOBAL_BATCH_SIZE, MICRO_BATCH_SIZE = 512, 8, 4


def main() -> None:
    """Times both and prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder, process_groups(Launch(0, 0, 1)) as groups:
        plan = _plan(Path(folder), steps)
        parts, twin, model = make_parts(plan, groups), make_parts(plan, groups), build_model(plan, groups)
        adam = make_adamw(plan, model)
        loop_s, plain_s, cpu = [], [], [0.0, 0.0]
        for step in range(1, steps + 3):
            began, cpu_began = time.perf_counter(), time.process_time()
            train_step(parts, lr=1e-3, step=step)
            middle, cpu_middle = time.perf_counter(), time.process_time()
            plain_step(plan, model, adam, twin.cursor.next_step(), lr=1e-3)
            loop_s.append(middle - began)
            plain_s.append(time.perf_counter() - middle)
            if step > 2:  # the first two warm up
                cpu = [cpu[0] + cpu_middle - cpu_began, cpu[1] + time.process_time() - cpu_middle]
    loop_s, plain_s = loop_s[2:], plain_s[2:]
    loop_ms, plain_ms = statistics.median(loop_s) * 1e3, statistics.median(plain_s) * 1e3
    ratio = statistics.median(a / b for a, b in zip(loop_s, plain_s, strict=True))
    print(
        f"threads {torch.get_num_threads()}, steps {steps}, sequence {SEQUENCE_LENGTH}, {GLOBAL_BATCH_SIZE} rows a step"
    )
    print(f"loop {loop_ms:.1f} ms, plain torch {plain_ms:.1f} ms, median ratio of pairs {ratio:.3f} (asked: <= 1.10)")
    print(f"CPU time, less moved by other processes: {cpu[0] / cpu[1]:.3f}")


def _plan(folder: Path, steps: int) -> object:
    generator = torch.Generator().manual_seed(0)
    samples = (steps + 2) * GLOBAL_BATCH_SIZE
    tokens = torch.randint(1, 4000, (samples + 1, SEQUENCE_LENGTH), generator=generator)
    write_source(folder / "toy", tokens.tolist())
    model = load_yaml(MODEL).data
    return plan_reading(
        {"toy": (folder / "toy", samples)},
        global_batch_size=GLOBAL_BATCH_SIZE,
        micro_batch_size=MICRO_BATCH_SIZE,
        batch={"sequence_length": SEQUENCE_LENGTH},
        model=model,
        model_size=make_plan().model_size.model_copy(update={"padded_vocab_size": 4096}),
    )


if __name__ == "__main__":
    main()
