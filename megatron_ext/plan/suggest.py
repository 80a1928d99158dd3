"""Layouts of a recipe that fit some GPUs, in a stated order.

Every legal tensor (TP) and pipeline (PP) parallel size is tried with every legal micro-batch and recomputation.
TP stays inside a node of `NODE` GPUs, because it communicates in every layer. Sequence parallelism is taken wherever
TP > 1 and the distributed optimizer wherever ranks share parameters: both move as many bytes as doing without and
hold less. Context parallelism is left out: runs refuse it yet.

A layout fits when the planned memory of the fullest rank leaves `RESERVE` of a GPU free for what plan/memory.py
does not count: temporary buffers of kernels, of communication, of the allocator. Those that fit are ranked by

1. extra work: the pipeline's idle share (PP - 1) / microbatches (Narayanan et al., arXiv 2104.04473 section 2.2)
   and the operations done again, as a share of a step's;
2. the least TP;
3. the least PP;
4. the largest micro-batch: fewer and larger kernels.

The order is a rule of thumb and predicts no speed: time a few steps of the first ones. The best of each
TP x PP is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from data_tools.errors import RecipeError
from megatron_ext.plan.batch import plan_batch
from megatron_ext.plan.execution import legal_recompute_modules
from megatron_ext.plan.flops import recomputed_token_flops, token_flops
from megatron_ext.plan.layouts import legal_tensor_parallel_sizes, plan_layout
from megatron_ext.plan.memory import memory_per_rank
from megatron_ext.plan.stage_plan import BatchPlan, ExecutionPlan, LayoutPlan, RankMemory
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.rules import divisors, listed
from megatron_ext.recipe.schema import ParallelRecipe, Recipe

NODE = 8
"""GPUs that one NVLink domain joins (H100 SXM5, the paper's)."""

RESERVE = 0.1
"""Share of a GPU that no plan fills. Our choice."""

MOST = 10
"""Suggestions to look for: the order is too rough to tell more of them apart."""


@dataclass(frozen=True)
class Candidate:
    """One layout with its micro-batch and recomputation, its memory not yet counted."""

    layout: LayoutPlan
    batch: BatchPlan
    execution: ExecutionPlan
    recomputed: float  # share of a step's operations that is done again

    @property
    def bubble(self) -> float:
        """Idle share of the pipeline."""
        return (self.layout.pipeline_model_parallel_size - 1) / self.batch.num_microbatches

    @property
    def sizes(self) -> tuple[int, int]:
        """TP, PP."""
        return self.layout.tensor_model_parallel_size, self.layout.pipeline_model_parallel_size

    @property
    def rank(self) -> tuple[float, int, int, int]:
        """The order of this module's docstring; less is better."""
        return self.bubble + self.recomputed, *self.sizes, -self.batch.micro_batch_size


@dataclass(frozen=True)
class Suggestion:
    """A candidate that fits.

    Attributes:
        memory: The fullest rank's.
        overrides: `key=value` options that select it; none where the recipe says the same.
    """

    candidate: Candidate
    memory: RankMemory
    overrides: tuple[str, ...]

    @property
    def set_line(self) -> str:
        """The overrides as options of the command line."""
        return " ".join(f"--set {override}" for override in self.overrides)


def suggest_layouts(loaded: LoadedRecipe, *, gpus: int, gpu_memory: int) -> list[Suggestion]:
    """Ranks the layouts that fit.

    Args:
        loaded: A checked recipe; its own layout, micro-batch and recomputation are not looked at. Backend `auto` is
            counted as `te`, which it takes on GPUs where te can run.
        gpus: Processes of the run.
        gpu_memory: Bytes of one GPU.

    Returns:
        Up to `MOST`, the best first.

    Raises:
        RecipeError: No layout is legal, or none fits; with the smallest need.
    """
    recipe = loaded.recipe
    if recipe.training.backend == "auto":
        recipe = _with(recipe, training={"backend": "te"})
    candidates = [candidate for plans in _legal_plans(loaded, recipe, gpus) for candidate in _candidates(recipe, plans)]
    if not candidates:
        raise RecipeError(_nothing_legal(recipe, gpus))
    most_frugal = {candidate.sizes: candidate for candidate in sorted(candidates, key=_frugality)}
    found: list[Suggestion] = []
    hopeless: list[Suggestion] = []
    for candidate in sorted(candidates, key=lambda candidate: candidate.rank):
        if any(candidate.sizes == known.candidate.sizes for known in (*found, *hopeless)) or len(found) == MOST:
            continue
        counted = _counted(candidate, loaded.recipe)
        if _fits(counted, gpu_memory):
            found.append(counted)
        elif not _fits(frugal := _counted(most_frugal[candidate.sizes], loaded.recipe), gpu_memory):
            hopeless.append(frugal)
    if not found:
        raise RecipeError(_nothing_fits(min(hopeless, key=lambda one: one.memory.total), gpus, gpu_memory))
    return found


def _legal_plans(loaded: LoadedRecipe, recipe: Recipe, gpus: int) -> Iterator[tuple[LayoutPlan, BatchPlan]]:
    """Every TP and PP that divides model, sequence, batch and GPUs, with a micro-batch of one sample."""
    for tensor in legal_tensor_parallel_sizes(recipe.model):
        for pipeline in divisors(gpus) if tensor <= NODE else []:
            changes = {
                "tensor_model_parallel_size": tensor,
                "pipeline_model_parallel_size": pipeline,
                "context_parallel_size": 1,
                "sequence_parallel": tensor > 1,
                "use_distributed_optimizer": gpus > tensor * pipeline,
            }
            asked = _with(recipe, parallel=changes, training={"micro_batch_size": 1})
            whole, problems = replace(loaded, recipe=asked), Problems()
            layout = plan_layout(whole, problems, world_size=gpus)
            batch = plan_batch(whole, layout, problems, [])
            if not problems.found:
                yield layout, batch


def _candidates(recipe: Recipe, plans: tuple[LayoutPlan, BatchPlan]) -> Iterator[Candidate]:
    """Every micro-batch and recomputation of one layout."""
    layout, batch = plans
    length = recipe.training.sequence_length
    work = sum(token_flops(recipe.model, length).values())
    executions = [ExecutionPlan(), ExecutionPlan(recompute="full")]
    if modules := legal_recompute_modules(recipe):
        executions.append(ExecutionPlan.model_validate({"recompute": "selective", "recompute_modules": tuple(modules)}))
    for execution in executions:
        recomputed = recomputed_token_flops(recipe.model, execution, length) / work
        for micro in divisors(batch.num_microbatches):
            sizes = {"micro_batch_size": micro, "num_microbatches": batch.num_microbatches // micro}
            yield Candidate(layout, batch.model_copy(update=sizes), execution, recomputed)


def _frugality(candidate: Candidate) -> tuple[float, int]:
    """Of one layout's candidates the last one in this order needs the least memory."""
    return candidate.recomputed, -candidate.batch.micro_batch_size


def _counted(candidate: Candidate, recipe: Recipe) -> Suggestion:
    layout, batch, execution = candidate.layout, candidate.batch, candidate.execution
    ranks = memory_per_rank(recipe.model, layout, batch, execution, precision=recipe.precision)
    fullest = max(ranks, key=lambda rank: rank.total)
    return Suggestion(candidate, fullest, _overrides(recipe, candidate))


def _fits(suggestion: Suggestion, gpu_memory: int) -> bool:
    return suggestion.memory.total <= (1 - RESERVE) * gpu_memory


def _overrides(recipe: Recipe, candidate: Candidate) -> tuple[str, ...]:
    """The keys whose value is not the recipe's."""
    execution, training = candidate.execution, recipe.training
    pairs: dict[str, tuple[Any, Any]] = {
        f"parallel.{key}": (getattr(candidate.layout, key), getattr(recipe.parallel, key))
        for key in ParallelRecipe.model_fields
    }
    pairs["training.micro_batch_size"] = candidate.batch.micro_batch_size, training.micro_batch_size
    for key in ("recompute", "recompute_modules", "recompute_num_layers"):
        pairs[f"training.{key}"] = getattr(execution, key), getattr(training, key)
    return tuple(f"{key}={_written(wanted)}" for key, (wanted, has) in pairs.items() if wanted != has)


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _with(recipe: Recipe, **changes: dict[str, Any]) -> Recipe:
    """A recipe with other values in some sections, which are checked as a layout later."""
    sections = {name: getattr(recipe, name).model_copy(update=values) for name, values in changes.items()}
    return recipe.model_copy(update=sections)


def _nothing_legal(recipe: Recipe, gpus: int) -> str:
    tensor = listed([size for size in legal_tensor_parallel_sizes(recipe.model) if size <= NODE])
    return (
        f"--gpus {gpus}: no layout is legal: TP can be {tensor}, and {gpus} / (TP x PP) must divide "
        f"global_batch_size {recipe.training.global_batch_size}; take another number of GPUs or another batch"
    )


def _nothing_fits(smallest: Suggestion, gpus: int, gpu_memory: int) -> str:
    need = smallest.memory.total
    return (
        f"--gpu-memory {gpu_memory / 1e9:,.4g} GB: nothing fits {gpus} GPUs with {RESERVE:.0%} of each kept free.\n"
        f"  smallest need  {need / 1e9:,.4g} GB on the fullest rank: {smallest.set_line}\n"
        f"  Take GPUs of at least {need / (1 - RESERVE) / 1e9:,.4g} GB, more of them, or a lower "
        "training.sequence_length."
    )
