"""How long a training step takes, from operations, bytes and a few constants.

Time of a pipeline stage for one microbatch, on one rank:

    work  = products / (a P) + ssd / (s P) + bytes / (w W)
    time  = the longer of  work + what it sends (traffic.py)  and  host x layers

and a step is (microbatches + stages - 1) times that of the slowest stage, then the reduction of gradients and the
update. P is the GPU's dense bf16 peak, W its memory bandwidth, both of the data sheet.

    products  projections, output layer, and attention twice: its kernels execute up to twice the model's operations
    ssd       as flops.py counts it
    bytes     m for each byte that the layers keep for the backward pass (activations.py): what norms, activations,
              convolutions, transposes and sums move hangs on the same tensors, each written and read some times
              + l a logit in the loss + 10 a parameter to add up gradients in fp32
    update    50 bytes a parameter: 4 to clear its gradient, and on its owner 4 for the norm, 8 to clip, 28 for AdamW
              with fp32 gradient, master weight and moments, 6 for the bf16 copy
    host      what a CPU needs to launch a layer's kernels, forward and backward

Done again (recomputation) is the forward pass: a third of a layer's operations and bytes.

Fitted by least squares to `measured_points.jsonl` (`tests/benchmarks/fit_speed.py` prints fit and residuals): a, s, and
m of each backend. Host times are those of the two points that the host bounds. Taken from one measurement each: w, l.
Not in it: kernels that lose with narrow matrices, clocks under load, the input's reading, checkpoints, validation.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from megatron_ext.plan.activations import kept_bytes
from megatron_ext.plan.flops import PASSES, recomputed_token_flops, stage_token_kinds
from megatron_ext.plan.hardware import Gpu
from megatron_ext.plan.memory import stage_parameter_sizes
from megatron_ext.plan.sizes import padded_vocab_size
from megatron_ext.plan.stage_plan import BatchPlan, ExecutionPlan, LayoutPlan
from megatron_ext.plan.traffic import Traffic, data_seconds, microbatch_traffic
from megatron_ext.recipe.layer_pattern import parse_pattern
from megatron_ext.recipe.schema import ModelRecipe

BANDWIDTH_RATIO = 0.75
"""w. AdamW's kernels moved 34 bytes for each of 127M parameters in about 1.2 ms on an H200 (benchmarks.md)."""

LOSS_BYTES = {"core": 62, "te": 12}
"""l. Of 537M logits core's cross entropy took 9.3 ms on an H200, Transformer Engine's 7.5 ms less (benchmarks.md)."""

_GRADIENT_BYTES, _CLEARED_BYTES, _OWNED_BYTES = 10, 4, 46


class Constants(NamedTuple):
    """What was fitted."""

    products: float  # a, share of the peak
    ssd: float  # s, share of the peak
    moved: dict[str, float]  # m, by backend
    host_ms: dict[str, float]  # of a layer, by backend


FITTED = Constants(0.723, 0.0407, {"te": 10.15, "local": 9.08}, {"te": 4.01, "local": 5.13})

LEFT_OUT_RATIO = 0.08
"""The largest relative error of a measured time that the fit to all others makes."""


class Step(NamedTuple):
    """What is timed."""

    model: ModelRecipe
    layout: LayoutPlan  # legal for the model; backend te or local
    batch: BatchPlan
    execution: ExecutionPlan
    precision: str


class Work(NamedTuple):
    """Of one microbatch on one rank of a pipeline stage."""

    products: float  # operations
    ssd: float  # operations
    kept: float  # bytes, of which the constant `moved` says how often each is moved
    counted: float  # bytes moved in the loss and for gradients
    numel: int  # parameters
    layers: int


class StepTime(NamedTuple):
    """Seconds of one step of a rank, on average over pipeline stages; they add up to the step."""

    products: float
    ssd: float
    elementwise: float
    update: float
    host: float  # the GPU waits for launches
    tensor: float
    context: float
    pipeline: float
    data: float
    idle: float  # a rank waits for other stages, or has no row

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(self)

    @property
    def communication(self) -> float:
        """What is sent."""
        return self.tensor + self.context + self.pipeline + self.data


def stage_work(step: Step, *, loss: str) -> list[Work]:
    """What each pipeline stage does in one microbatch, first stage first; `loss` is a key of `LOSS_BYTES`."""
    model, layout, batch, execution, precision = step
    tokens, tensor = _tokens(layout, batch), layout.tensor_model_parallel_size
    found = []
    segments = parse_pattern(layout.hybrid_layer_pattern).segments
    for stage, kinds in enumerate(stage_token_kinds(model, layout, batch.sequence_length)):
        layers = kinds.get("projection", 0) + 2 * kinds.get("attention", 0)
        again = 1 + 1 / PASSES if execution.recompute == "full" else 1
        part = _again(model, segments[stage], execution, batch.sequence_length)
        numel = _numel(model, layout, stage)
        logits = padded_vocab_size(model.vocab_size) / tensor * tokens if stage == len(segments) - 1 else 0
        kept = kept_bytes(model, layout, batch, stage=stage, precision=precision)
        found.append(
            Work(
                products=(again * layers + part + kinds.get("output", 0)) * tokens / tensor,
                ssd=again * kinds.get("ssd", 0) * tokens / tensor,
                kept=again * kept,
                counted=LOSS_BYTES[loss] * logits + _GRADIENT_BYTES * numel,
                numel=numel,
                layers=len(segments[stage]),
            )
        )
    return found


def step_time(
    step: Step,
    gpu: Gpu,
    *,
    time_over_work: float | None = None,
    constants: Constants = FITTED,
    factor: float = 1.0,
    loss: str | None = None,
) -> StepTime:
    """Predicts one step.

    Args:
        step: In bf16.
        gpu: Every rank's.
        time_over_work: What ranks live through over what they work, in microbatches of equal stages; None takes a
            pipeline's (microbatches + stages - 1) / microbatches.
        constants: What was fitted.
        factor: On all that is not communication: what a near measurement took over what this says of it.
        loss: A key of `LOSS_BYTES`; None takes the backend's.
    """
    model, layout, batch, *_ = step
    works = stage_work(step, loss=loss or ("te" if layout.backend == "te" else "core"))
    segments = parse_pattern(layout.hybrid_layer_pattern).segments
    tokens = _tokens(layout, batch)
    micro = batch.tokens_per_step / (batch.sequence_length * batch.micro_batch_size * layout.data_parallel_size)
    sums = [0.0] * 7
    slowest = 0.0
    for stage, (work, symbols) in enumerate(zip(works, segments, strict=True)):
        sent = microbatch_traffic(model, layout, gpu, symbols=symbols, stage=stage, tokens=tokens)
        parts = _microbatch(work, layout, gpu, constants, factor, sent)
        sums = [total + part for total, part in zip(sums, parts, strict=True)]
        slowest = max(slowest, sum(parts))
    products, ssd, elementwise, host, tensor, context, pipeline = (micro * part / len(works) for part in sums)
    stretch = (batch.num_microbatches + len(works) - 1) / micro if time_over_work is None else time_over_work
    numel = max(work.numel for work in works)
    return StepTime(
        products=products,
        ssd=ssd,
        elementwise=elementwise,
        update=factor * update_seconds(layout, gpu, numel=numel),
        host=host,
        tensor=tensor,
        context=context,
        pipeline=pipeline,
        data=data_seconds(layout, gpu, numel=numel),
        idle=micro * (slowest * stretch - sum(sums) / len(works)),
    )


def _microbatch(
    work: Work, layout: LayoutPlan, gpu: Gpu, constants: Constants, factor: float, sent: Traffic
) -> tuple[float, ...]:
    """Seconds: products, ssd, elementwise, waiting for the host, and what is sent."""
    peak = gpu.peak_tflops * 1e12 / factor
    products, ssd = work.products / (peak * constants.products), work.ssd / (peak * constants.ssd)
    moved = constants.moved[layout.backend] * work.kept + work.counted
    elementwise = factor * moved / (gpu.memory_bandwidth * BANDWIDTH_RATIO)
    launches = factor * constants.host_ms[layout.backend] / 1e3 * work.layers
    return products, ssd, elementwise, max(0.0, launches - products - ssd - elementwise - sum(sent)), *sent


def update_seconds(layout: LayoutPlan, gpu: Gpu, *, numel: int) -> float:
    """Clearing, clipping and AdamW of a rank that holds `numel` parameters."""
    shards = layout.data_parallel_size * layout.context_parallel_size if layout.use_distributed_optimizer else 1
    return (_CLEARED_BYTES + _OWNED_BYTES / shards) * numel / (gpu.memory_bandwidth * BANDWIDTH_RATIO)


def _tokens(layout: LayoutPlan, batch: BatchPlan) -> int:
    """Of one microbatch on one rank."""
    return batch.micro_batch_size * batch.sequence_length // layout.context_parallel_size


def _again(model: ModelRecipe, symbols: str, execution: ExecutionPlan, sequence_length: int) -> int:
    """Operations for a token that selective recomputation does again in these layers."""
    if execution.recompute != "selective":
        return 0
    return recomputed_token_flops(
        model.model_copy(update={"hybrid_layer_pattern": symbols}), execution, sequence_length
    )


@functools.cache  # --suggest asks for many micro-batches of one layout
def _numel(model: ModelRecipe, layout: LayoutPlan, stage: int) -> int:
    """Parameters of one rank of a pipeline stage."""
    return sum(size.numel for size in stage_parameter_sizes(model, layout, stage))
