"""Measured training steps: the points that predictions start from.

`measured_points.jsonl` beside this file has one JSON object a line; `make gpu-check` writes such lines too, and
`plan --points FILE` reads them. Fields:

    name               of the point
    date, commit       when, and of which code
    source             page and anchor that states it, or the report that it was read from
    gpu                a100, h100, h200
    versions           by package; without: packages that this backend uses and that were missing
    model              file of recipes/models, without its ending
    backend            te, local (its kernels where `without` is empty); precision
    cross_entropy      te: Transformer Engine's fused one; core: core's passes over fp32 logits
    rows, sequence_length, microbatches      of a rank in a step; rows are of a microbatch
    tensor, pipeline, context, data          ranks; 1 each for one GPU
    steps              timed; step_ms their median, null where only the GPU's own time is of use
    busy_ms            that the GPU was busy in a step (profiler), null if not measured
    kinds_ms           parts of it: products, ssd, rest (all else); only those that the source states
    matmul_peak_tflops bf16 matrix product of 8192^3 just then
    peak_memory        bytes, the allocator's
    note               what a reader must know

A point of one 130M model is some 800 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_tools.errors import DataError
from data_tools.strict_yaml import load_yaml
from megatron_ext.plan.speed import Step
from megatron_ext.plan.stage_plan import BatchPlan, ExecutionPlan, LayoutPlan
from megatron_ext.recipe.locate import locate
from megatron_ext.recipe.schema import ModelRecipe

POINTS = Path(__file__).with_name("measured_points.jsonl")

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MeasuredPoint(BaseModel):
    """One line; the fields are explained above."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    commit: str
    source: Annotated[str, Field(min_length=1)]
    gpu: Literal["a100", "h100", "h200"]
    versions: dict[str, str]
    without: list[str] = []
    model: str
    backend: Literal["te", "local"]
    precision: Literal["fp32", "bf16"]
    cross_entropy: Literal["te", "core"]
    rows: Count
    sequence_length: Count
    microbatches: Count = 1
    tensor: Count = 1
    pipeline: Count = 1
    context: Count = 1
    data: Count = 1
    steps: Count
    step_ms: Positive | None = None
    busy_ms: Positive | None = None
    kinds_ms: dict[Literal["products", "ssd", "rest"], Positive] = {}
    matmul_peak_tflops: Positive | None = None
    peak_memory: Count | None = None
    note: str = ""

    @property
    def ranks(self) -> int:
        """GPUs of the run."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def tokens_per_s(self) -> float | None:
        """Of all ranks."""
        tokens = self.rows * self.sequence_length * self.microbatches * self.data
        return None if self.step_ms is None else tokens / self.step_ms * 1e3

    def recipe(self) -> ModelRecipe:
        """The model, as it is today."""
        return ModelRecipe(**load_yaml(locate(f"recipes/models/{self.model}.yaml")).data)

    def layout(self, pattern: str) -> LayoutPlan:
        """Its ranks; `pattern` has a `|` where the pipeline is cut."""
        return LayoutPlan(
            world_size=self.ranks,
            tensor_model_parallel_size=self.tensor,
            pipeline_model_parallel_size=self.pipeline,
            context_parallel_size=self.context,
            data_parallel_size=self.data,
            sequence_parallel=self.tensor > 1,
            use_distributed_optimizer=self.data * self.context > 1,
            hybrid_layer_pattern=pattern,
            backend=self.backend,
        )

    def batch(self) -> BatchPlan:
        """One step of it."""
        rows = self.rows * self.microbatches * self.data
        tokens = rows * self.sequence_length
        return BatchPlan(
            sequence_length=self.sequence_length,
            global_batch_size=rows,
            micro_batch_size=self.rows,
            num_microbatches=self.microbatches,
            requested_tokens=tokens,
            tokens_per_step=tokens,
            total_steps=1,
            total_samples=rows,
            total_tokens=tokens,
            max_steps=None,
        )

    def step(self) -> Step:
        """What its time is of."""
        model = self.recipe()
        layout = self.layout(model.hybrid_layer_pattern)
        return Step(model, layout, self.batch(), ExecutionPlan(), self.precision)

    def described(self) -> str:
        """A few words for tables."""
        gpus = f"one {self.gpu}" if self.ranks == 1 else f"{self.ranks} {self.gpu}"
        return (
            f"{self.model}, {self.rows} x {self.sequence_length:,} tokens, {self.backend}, {self.precision}, "
            f"{gpus}, {self.date}"
        )


def read_points(path: Path = POINTS) -> list[MeasuredPoint]:
    """The points of a file, in its order.

    Raises:
        DataError: The file cannot be read, or a line is no point; with its number, key and rule.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a file of measured points.") from None
    points = [_point(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    names = [point.name for point in points]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: name: {', '.join(twice)} stands there twice; give each point a name of its own.")
    return points


def _point(path: Path, number: int, line: str) -> MeasuredPoint:
    try:
        return MeasuredPoint(**json.loads(line))
    except (ValueError, TypeError) as error:
        if isinstance(error, ValidationError):
            said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        else:
            said = f"no JSON object ({error})"
        raise DataError(f"{path}:{number}: {said}; megatron_ext/plan/measured.py lists the fields.") from None


def steps_of(points: Iterable[MeasuredPoint]) -> list[MeasuredPoint]:
    """The points that tell how long a whole step takes, with every package that their backend uses."""
    return [point for point in points if point.step_ms is not None and not point.without]
