"""The speed of a stage, predicted from the nearest measured step.

speed.py says how long the measured step and the planned one take; what the measurement took over what that says of
it is a factor on the planned one's time, communication apart. So the plan of a measured step says what was measured.

Near is a point of the same precision and backend whose model has at most `FARTHEST` times more or fewer parameters and
whose rows are at most so many times longer or shorter. Among these one of the same GPU goes first, then the nearest:
the sum of the logarithms of both ratios. Where nothing is near, nothing is predicted.

The range is not an interval of any confidence: computation by `RANGE_RATIO` less or more, communication from half to
twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from data_tools.errors import UsageError
from megatron_ext.plan.cost import counted_on_gpus
from megatron_ext.plan.hardware import GPUS, LINK_RATIO, Gpu
from megatron_ext.plan.measured import MeasuredPoint, steps_of
from megatron_ext.plan.sizes import model_size
from megatron_ext.plan.speed import LEFT_OUT_RATIO, Step, StepTime, step_time
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.schema import ModelRecipe, Recipe

FARTHEST = 10
"""Our choice."""

RANGE_RATIO = 2 * LEFT_OUT_RATIO
"""Our choice: the plans of interest lie farther from the points than the points from one another."""


class Anchor(NamedTuple):
    """The measured step that predictions start from."""

    point: MeasuredPoint
    factor: float  # what it took over what speed.py says of it
    parameters_ratio: float  # of the planned model, over its own
    length_ratio: float  # of the planned rows, over its own


class Prediction(NamedTuple):
    """How fast one layout is predicted to be."""

    gpu: Gpu
    anchor: Anchor
    step: StepTime
    slowest_s: float  # of a step
    fastest_s: float
    tokens: int  # of a step, all ranks
    token_flops: int
    ranks: int

    @property
    def tokens_per_s(self) -> float:
        """A GPU's."""
        return self.tokens / self.step.total / self.ranks

    @property
    def range_per_s(self) -> tuple[float, float]:
        """A GPU's tokens/s, slowest and fastest."""
        return self.tokens / self.slowest_s / self.ranks, self.tokens / self.fastest_s / self.ranks

    @property
    def mfu(self) -> float:
        """Share of the data sheet's peak."""
        return self.tokens_per_s * self.token_flops / (self.gpu.peak_tflops * 1e12)


def find_anchor(
    model: ModelRecipe, *, sequence_length: int, backend: str, precision: str, gpu: Gpu, points: Sequence[MeasuredPoint]
) -> Anchor:
    """The nearest point.

    Raises:
        UsageError: None is near; with the nearest of any kind, and what to do.
    """
    parameters = model_size(model).total_parameters
    alike = [point for point in steps_of(points) if (point.backend, point.precision) == (backend, precision)]
    found = []
    for point in alike:
        ratios = parameters / model_size(point.recipe()).total_parameters, sequence_length / point.sequence_length
        far = [abs(math.log(ratio)) for ratio in ratios]
        if max(far) <= math.log(FARTHEST):
            found.append((point.gpu != gpu.name, sum(far), point, ratios))
    if not found:
        raise UsageError(_nothing_near(alike, backend, precision))
    *_, point, ratios = min(found, key=lambda one: one[:2])
    assert point.step_ms is not None, "steps_of gives points with a step"
    said = step_time(point.step(), GPUS[point.gpu], loss=point.cross_entropy)
    return Anchor(point, point.step_ms / 1e3 / said.total, *ratios)


def _nothing_near(alike: Sequence[MeasuredPoint], backend: str, precision: str) -> str:
    known = "; ".join(point.described() for point in alike) or f"nothing of backend {backend} in {precision}"
    return (
        f"plan: --gpu without --mfu predicts from a measured step of the same backend and precision, whose model and "
        f"rows are at most {FARTHEST} times larger or smaller. Measured: {known}. State an --mfu, or measure one "
        "(make gpu-check) and name the file with --points."
    )


def anchor_of(recipe: Recipe, gpu: Gpu, points: Sequence[MeasuredPoint]) -> Anchor:
    """The nearest point of a recipe; backend `auto` is counted as `te`, as memory is.

    Raises:
        UsageError: No measured step is near, or the stage samples or multiplies in fp8.
    """
    if recipe.stage == "rl":
        raise UsageError("plan: --gpu without --mfu: how long an rl stage samples is not predicted; state an --mfu.")
    if recipe.fp8 is not None:
        raise UsageError(
            "plan: --gpu without --mfu: no step in fp8 has been measured; state an --mfu, or set fp8=null."
        )
    return find_anchor(
        recipe.model,
        sequence_length=recipe.training.sequence_length,
        backend="local" if recipe.training.backend == "local" else "te",
        precision=recipe.precision,
        gpu=gpu,
        points=points,
    )


def predict_step(
    step: Step, gpu: Gpu, anchor: Anchor, *, token_flops: int, time_over_work: float | None = None
) -> Prediction:
    """Predicts one step; `token_flops` are of all kinds."""
    time = step_time(step, gpu, factor=anchor.factor, time_over_work=time_over_work)
    own = time.total - time.communication
    return Prediction(
        gpu=gpu,
        anchor=anchor,
        step=time,
        slowest_s=(1 + RANGE_RATIO) * own + 2 * time.communication,
        fastest_s=(1 - RANGE_RATIO) * own + time.communication / 2,
        tokens=step.batch.tokens_per_step,
        token_flops=token_flops,
        ranks=step.layout.world_size,
    )


def predict(plan: StagePlan, gpu: Gpu, anchor: Anchor) -> Prediction:
    """Predicts a planned stage from the anchor of its recipe; `auto` is counted as `te`, as memory is."""
    assert plan.cost is not None, "a plan made from a recipe has its cost"
    step = Step(plan.model, counted_on_gpus(plan.layout), plan.batch, plan.execution, plan.precision)
    return predict_step(step, gpu, anchor, token_flops=sum(plan.cost.token_flops.values()))


def origin(prediction: Prediction) -> list[str]:
    """What a prediction starts from, and how far it goes, as two sentences."""
    anchor, gpu = prediction.anchor, prediction.gpu
    far = [
        f"parameters x {anchor.parameters_ratio:.3g}" if abs(anchor.parameters_ratio - 1) > 0.005 else "",
        f"rows x {anchor.length_ratio:.3g}" if anchor.length_ratio != 1 else "",
        f"{anchor.point.gpu} to {gpu.name} by peak and memory bandwidth" if anchor.point.gpu != gpu.name else "",
        f"{anchor.point.ranks} to {prediction.ranks:,} GPUs by bytes over NVLink of {gpu.nvlink / 1e9:g} and "
        f"adapters of {gpu.network / 1e9:g} GB/s at {LINK_RATIO:.0%}, as if nothing overlapped, never measured"
        if prediction.ranks != anchor.point.ranks
        else "",
    ]
    return [
        f"an estimate from {anchor.point.described()}, which took {anchor.factor:.3g} x the model's time",
        f"from there: {'; '.join(filter(None, far)) or 'the same'}",
    ]
