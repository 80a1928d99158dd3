"""Fits the constants of `megatron_ext/plan/speed.py` to measured steps, and prints what they explain.

    python tests/benchmarks/fit_speed.py [--points FILE]

Every number that a point states becomes one equation that is linear in 1/a, 1/s and m of each backend; each weighs by
its own size, so that relative errors are made small. A step that the host bounds gives its backend's host time and is
no equation. Leaving one point out and predicting it says how far to trust the rest. Takes a second, needs numpy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from megatron_ext.plan.activations import unnormalised_bytes
from megatron_ext.plan.flops import token_flops
from megatron_ext.plan.hardware import GPUS
from megatron_ext.plan.measured import POINTS, MeasuredPoint, read_points
from megatron_ext.plan.memory import memory_per_rank
from megatron_ext.plan.speed import BANDWIDTH_RATIO, Constants, stage_work, update_seconds

BACKENDS = ("te", "local")
UNKNOWNS = 2 + len(BACKENDS)  # 1/a, 1/s, m of each backend


class Equation(NamedTuple):
    """coefficients x unknowns + known = measured, in milliseconds."""

    point: str
    what: str
    coefficients: tuple[float, ...]
    known: float
    measured: float

    def predicted(self, unknowns: np.ndarray) -> float:
        """Milliseconds."""
        return float(np.dot(self.coefficients, unknowns)) + self.known


def equations(point: MeasuredPoint) -> list[Equation]:
    """What a point of one GPU says of the unknowns."""
    assert point.ranks == 1, f"{point.name}: communication has no equation yet"
    gpu, step = GPUS[point.gpu], point.step()
    batch = step.batch
    (work,) = stage_work(step, loss=point.cross_entropy)
    tokens = batch.micro_batch_size * batch.sequence_length
    attention = 2 * token_flops(step.model, batch.sequence_length).get("attention", 0) * tokens
    flops_ms, bytes_ms = 1e3 / (gpu.peak_tflops * 1e12), 1e3 / (gpu.memory_bandwidth * BANDWIDTH_RATIO)
    micro = batch.num_microbatches
    moved = tuple(micro * work.kept * bytes_ms * (backend == point.backend) for backend in BACKENDS)
    known = micro * work.counted * bytes_ms + 1e3 * update_seconds(step.layout, gpu, numel=work.numel)
    products, ssd = micro * work.products * flops_ms, micro * work.ssd * flops_ms
    whole = (products, ssd, *moved), known
    parts: dict[str, tuple[tuple[float, ...], float]] = {
        "products": ((products - micro * attention * flops_ms, 0.0, 0.0, 0.0), 0.0),
        "ssd": ((0.0, ssd, 0.0, 0.0), 0.0),
        "rest": ((0.0, 0.0, *moved), known),
    }
    found = [Equation(point.name, kind, *parts[kind], float(ms)) for kind, ms in point.kinds_ms.items()]
    if not found:
        what, measured = ("step", point.step_ms) if point.busy_ms is None else ("busy", point.busy_ms)
        assert measured is not None, f"{point.name}: says no time"
        found.append(Equation(point.name, what, *whole, measured))
    return found


def fit(points: Sequence[MeasuredPoint]) -> np.ndarray:
    """The unknowns that make relative errors smallest; NaN where no point says anything of one."""
    rows = [equation for point in points for equation in equations(point)]
    matrix = np.array([np.array(row.coefficients) / row.measured for row in rows])
    right = np.array([1 - row.known / row.measured for row in rows])
    told = matrix.any(axis=0)
    unknowns = np.full(UNKNOWNS, np.nan)
    unknowns[told] = np.linalg.lstsq(matrix[:, told], right, rcond=None)[0]
    return unknowns


def host_ms(points: Sequence[MeasuredPoint]) -> dict[str, float]:
    """Milliseconds a layer, of the steps in which the GPU waited for a tenth and more; of several the least."""
    found: dict[str, float] = {}
    for point in points:
        if point.step_ms is not None and point.busy_ms is not None and point.busy_ms < 0.9 * point.step_ms:
            layers = len(point.recipe().hybrid_layer_pattern.replace("|", "")) * point.microbatches
            found[point.backend] = min(found.get(point.backend, np.inf), point.step_ms / layers)
    return found


def constants_of(points: Sequence[MeasuredPoint]) -> Constants:
    """What speed.py holds as `FITTED`."""
    products, ssd, *moved = fit(points)
    by_backend = {backend: float(number) for backend, number in zip(BACKENDS, moved, strict=True)}
    return Constants(float(1 / products), float(1 / ssd), by_backend, host_ms(points))


def residuals(points: Sequence[MeasuredPoint]) -> list[tuple[Equation, float, float]]:
    """Each equation with its relative error from all points, and from all points but its own (NaN: not told)."""
    unknowns = fit(points)
    found = []
    for point in points:
        others = fit([other for other in points if other is not point])
        for equation in equations(point):
            errors = (equation.predicted(x) / equation.measured - 1 for x in (unknowns, _relevant(others, equation)))
            found.append((equation, *errors))
    return found


def _relevant(unknowns: np.ndarray, equation: Equation) -> np.ndarray:
    """Unknowns that the equation does not name as zeros, so that a NaN stays only where it matters."""
    return np.where(np.array(equation.coefficients) == 0, 0.0, unknowns)


def memory_ratio(point: MeasuredPoint) -> float:
    """Measured peak over what today's code plans, with core's logits where its cross entropy ran."""
    model, layout, batch, execution, precision = point.step()
    (planned,) = memory_per_rank(model, layout, batch, execution, precision=precision, on_gpu=True)
    more = 0
    if point.cross_entropy == "core" and point.backend == "te":  # today's te has Transformer Engine's
        more = unnormalised_bytes(model, layout, batch, precision)
    assert point.peak_memory is not None
    return point.peak_memory / (planned.total + more)


def main() -> None:
    """Prints constants and residuals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=Path, default=POINTS)
    points = read_points(parser.parse_args().points)
    print(constants_of(points))
    print(f"{'point':32} {'number':9} {'ms':>8} {'error':>8} {'left out':>9}")
    for equation, error, left_out in residuals(points):
        print(f"{equation.point:32} {equation.what:9} {equation.measured:8.1f} {error:8.1%} {left_out:9.1%}")
    for point in points:
        if point.peak_memory:
            print(f"{point.name:32} memory measured / planned {memory_ratio(point):.3f}")


if __name__ == "__main__":
    main()
