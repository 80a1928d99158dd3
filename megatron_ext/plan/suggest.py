"""Layouts of a recipe that fit some GPUs, in a stated order.

Every legal tensor (TP) and pipeline (PP) parallel size is tried with every legal micro-batch and recomputation.
TP stays inside a node of `NODE` GPUs, because it communicates in every layer. Sequence parallelism is taken wherever
TP > 1 and the distributed optimizer wherever ranks share parameters: both move as many bytes as doing without and
hold less. Where the one is refused with the rest of the recipe, the other is tried. Context parallelism (CP, te only)
is tried up to `NODE` where no layout without it fits with nothing done again; it may leave a node. An sft stage has a
packed row a microbatch: as many as its steps have where its data is built or declared, else a row for each of
`global_batch_size`. What is suggested has been planned as it stands, up to the data: `plan` accepts it.

A layout fits when the planned memory of the fullest rank leaves `RESERVE` of a GPU free for what plan/memory.py
does not count: temporary buffers of kernels, of communication, of the allocator. Those that fit are ranked by

1. extra time, as a share of a step without any: what the pipeline idles and the operations done again. A pipeline
   of equal stages idles (PP - 1) / microbatches (Narayanan et al., arXiv 2104.04473 section 2.2); of unequal ones
   all wait for the slowest: (microbatches + PP - 1) / microbatches x slowest / mean - 1, in operations. Ranks of an
   sft stage that have no row in a microbatch idle too: over its steps, sum(microbatches + PP - 1) stands for the
   first numerator and sum(rows) / ranks for the denominator;
2. the least CP;
3. the least TP;
4. the least PP;
5. the largest micro-batch: fewer and larger kernels.

The order is a rule of thumb and predicts no speed: time a few steps of the first ones. Where a GPU is named and a
measured step is near (predict.py), they are ranked by the predicted time of a step instead, these rules deciding
between equals. The best of each TP x PP x CP is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.errors import RecipeError
from megatron_ext.plan.cost import counted_on_gpus
from megatron_ext.plan.datasets import has_sizes
from megatron_ext.plan.execution import legal_recompute_modules
from megatron_ext.plan.flops import recomputed_token_flops, stage_token_flops, token_flops
from megatron_ext.plan.hardware import NODE, RESERVE, Gpu, fits
from megatron_ext.plan.layouts import legal_tensor_parallel_sizes
from megatron_ext.plan.make import Draft, draft_before, draft_plan
from megatron_ext.plan.memory import memory_per_rank
from megatron_ext.plan.predict import Anchor, Prediction, predict_step
from megatron_ext.plan.sft import plan_sft
from megatron_ext.plan.sft_batch import row_slots
from megatron_ext.plan.sft_declared import PackedStage
from megatron_ext.plan.speed import Step
from megatron_ext.plan.stage_plan import BatchPlan, ExecutionPlan, LayoutPlan, RankMemory, StagePlan
from megatron_ext.recipe.layer_pattern import parse_pattern
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.rules import divisors, listed
from megatron_ext.recipe.schema import ParallelRecipe, Recipe, SftRecipe, TrainingRecipe

_CONTEXTS = range(2, NODE + 1)

MOST = 10
"""Suggestions to look for: the order is too rough to tell more of them apart."""

_RECOMPUTE = ("recompute", "recompute_modules", "recompute_num_layers")
_PLAIN = {key: TrainingRecipe.model_fields[key].default for key in _RECOMPUTE} | {"micro_batch_size": 1}

Before = Draft | StagePlan | None
"""The stage that the suggested one continues."""


@dataclass(frozen=True)
class Candidate:
    """One layout with its micro-batch and recomputation, its memory not yet counted."""

    layout: LayoutPlan
    batch: BatchPlan
    execution: ExecutionPlan
    recomputed: float  # share of a step's operations that is done again
    imbalance: float  # operations of the slowest pipeline stage over the mean
    time_over_work: float  # of a rank, in microbatches, were all pipeline stages equal
    prediction: Prediction | None = None

    @property
    def idle(self) -> float:
        """What ranks wait, as a share of the time that they work."""
        return self.time_over_work * self.imbalance - 1

    @property
    def sizes(self) -> tuple[int, int]:
        """TP, PP."""
        return self.layout.tensor_model_parallel_size, self.layout.pipeline_model_parallel_size

    @property
    def all_sizes(self) -> tuple[int, int, int]:
        """CP, TP, PP: the best candidate of each is kept."""
        return self.layout.context_parallel_size, *self.sizes

    @property
    def rank(self) -> tuple[float, float, int, int, int, int]:
        """The order of this module's docstring; less is better."""
        seconds = self.prediction.step.total if self.prediction is not None else 0.0
        return seconds, self.idle + self.recomputed, *self.all_sizes, -self.batch.micro_batch_size


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


class Search(NamedTuple):
    """What came of all legal layouts, by their sizes."""

    found: list[Suggestion]  # fit, the best first
    too_large: list[Suggestion]  # fit in no micro-batch and with nothing kept: as frugal as they can be
    further: int  # fit too, and stand behind the found ones


def suggest_layouts(
    loaded: LoadedRecipe, *, gpus: int, gpu_memory: int, run_root: Path | None = None
) -> list[Suggestion]:
    """The layouts that fit, the best first: `search_layouts` without a GPU of known speed."""
    return search_layouts(loaded, gpus=gpus, gpu_memory=gpu_memory, run_root=run_root).found


def search_layouts(
    loaded: LoadedRecipe,
    *,
    gpus: int,
    gpu_memory: int,
    run_root: Path | None = None,
    speed: tuple[Gpu, Anchor] | None = None,
) -> Search:
    """Ranks the layouts that fit.

    Args:
        loaded: A checked recipe; its own layout, micro-batch and recomputation are not looked at. Backend `auto` is
            counted as `te`, which it takes on GPUs where te can run.
        gpus: Processes of the run.
        gpu_memory: Bytes of one GPU.
        run_root: Where a parent named by its id lies; None takes the site's.
        speed: The GPU, and the measured step that predictions start from; None ranks without predictions.

    Returns:
        Up to `MOST` that fit, and why the others are not among them.

    Raises:
        RecipeError: What no layout mends; no layout is legal; or none fits, with the smallest need.
        DataError: The rows of an sft stage cannot be made of its data.
    """
    before = draft_before(loaded, run_root=run_root)
    packed = None
    if loaded.recipe.stage == "sft" and has_sizes(loaded):
        packed = plan_sft(loaded, [], store=str(run_root or loaded.site.run_root), is_kept=False)
    draft_plan(_smallest_layout(loaded), before=before, packed=packed)
    candidates = [_timed(one, loaded.recipe, speed) for one in _candidates(loaded, gpus, before, packed)]
    result = _fitting(candidates, loaded.recipe, gpu_memory)
    if not any(one.candidate.recomputed == 0 for one in result.found):
        shared = _candidates(loaded, gpus, before, packed, is_shared=True)
        candidates += [_timed(one, loaded.recipe, speed) for one in shared]
        result = _fitting(candidates, loaded.recipe, gpu_memory)
    if not candidates:
        raise RecipeError(_nothing_legal(loaded.recipe, gpus))
    if not result.found:
        raise RecipeError(_nothing_fits(min(result.too_large, key=lambda one: one.memory.total), gpus, gpu_memory))
    return result


def _timed(candidate: Candidate, recipe: Recipe, speed: tuple[Gpu, Anchor] | None) -> Candidate:
    """The candidate with its predicted speed, where one can be told."""
    if speed is None:
        return candidate
    gpu, anchor = speed
    step = Step(recipe.model, candidate.layout, candidate.batch, candidate.execution, recipe.precision)
    work = sum(token_flops(recipe.model, candidate.batch.sequence_length).values())
    prediction = predict_step(step, gpu, anchor, token_flops=work, time_over_work=candidate.time_over_work)
    return replace(candidate, prediction=prediction)


def untried_pad_multiple(found: Sequence[Suggestion], recipe: Recipe) -> int | None:
    """The `sft.pad_multiple` that stood against every context parallel size that was to be tried; None if it did not.

    Args:
        found: What is suggested; none where nothing fits.
        recipe: What it is suggested for.
    """
    pad = (recipe.sft or SftRecipe()).pad_multiple
    is_refused = recipe.stage == "sft" and recipe.training.backend != "local" and all(pad % (2 * c) for c in _CONTEXTS)
    return pad if is_refused and not any(one.candidate.recomputed == 0 for one in found) else None


def _fitting(candidates: list[Candidate], recipe: Recipe, gpu_memory: int) -> Search:
    """The best candidate that fits of all sizes, and the sizes that never do, as frugal as they can be."""
    by_sizes: dict[tuple[int, int, int], list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.rank):
        by_sizes.setdefault(candidate.all_sizes, []).append(candidate)
    found: list[Suggestion] = []
    too_large: list[Suggestion] = []
    for ranked in by_sizes.values():
        frugal = _counted(max(ranked, key=_frugality), recipe)
        if not _fits(frugal, gpu_memory):
            too_large.append(frugal)
            continue
        all_counted = (_counted(candidate, recipe) for candidate in ranked)
        found.append(next(one for one in all_counted if _fits(one, gpu_memory)))
    found.sort(key=lambda one: one.candidate.rank)
    return Search(found[:MOST], too_large, len(found[MOST:]))


def _smallest_layout(loaded: LoadedRecipe) -> LoadedRecipe:
    """The recipe as it is refused only for what is wrong in every layout."""
    stages = len(parse_pattern(loaded.recipe.model.hybrid_layer_pattern).segments)
    is_sharded = loaded.recipe.checkpoint.optimizer_format == "dp_reshardable"
    return _with(loaded, parallel=_sizes(1, stages, is_sharded=is_sharded), training=_PLAIN)


def _legal_layouts(
    loaded: LoadedRecipe, gpus: int, before: Before, packed: PackedStage | None, *, is_shared: bool
) -> Iterator[tuple[dict[str, Any], Draft]]:
    """Every TP, PP and CP that is legal with a micro-batch of one sample and without recomputation: keys and plan.

    CP is 1, or with `is_shared` above 1.
    """
    for tensor in legal_tensor_parallel_sizes(loaded.recipe.model):
        contexts = _CONTEXTS if is_shared else [1]
        for context, pipeline in product(contexts, divisors(gpus)) if tensor <= NODE else []:
            if loaded.recipe.stage == "rl" and (context, pipeline) != (1, 1):
                continue  # a rank that samples holds all layers and whole sequences
            has_copies = gpus > tensor * pipeline
            for is_sharded in (has_copies, not has_copies):
                keys = _sizes(tensor, pipeline, context=context, is_sharded=is_sharded)
                if draft := _legal_draft(_with(loaded, parallel=keys, training=_PLAIN), gpus, before, packed):
                    yield keys, draft
                    break


def _sizes(tensor: int, pipeline: int, *, is_sharded: bool, context: int = 1) -> dict[str, Any]:
    return {
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": pipeline,
        "context_parallel_size": context,
        "sequence_parallel": tensor > 1,
        "use_distributed_optimizer": is_sharded,
    }


def _candidates(
    loaded: LoadedRecipe, gpus: int, before: Before, packed: PackedStage | None, *, is_shared: bool = False
) -> Iterator[Candidate]:
    """Every legal micro-batch and recomputation of every legal layout, of one rank a row or (`is_shared`) several."""
    recipe, length = loaded.recipe, loaded.recipe.training.sequence_length
    work = sum(token_flops(recipe.model, length).values())
    kinds: list[dict[str, Any]] = [{}, {"recompute": "full"}]
    if modules := legal_recompute_modules(recipe):
        kinds.append({"recompute": "selective", "recompute_modules": tuple(modules)})
    for keys, plain in _legal_layouts(loaded, gpus, before, packed, is_shared=is_shared):
        stages = stage_token_flops(recipe.model, plain.layout, length)
        imbalance = max(stages) * len(stages) / sum(stages)
        micros = [1] if recipe.stage in ("sft", "rl") else divisors(plain.batch.num_microbatches)
        for kind, micro in product(kinds, micros):
            asked = _with(loaded, parallel=keys, training=_PLAIN | kind | {"micro_batch_size": micro})
            if draft := _legal_draft(asked, gpus, before, packed):
                recomputed = recomputed_token_flops(recipe.model, draft.execution, length) / work
                yield Candidate(
                    counted_on_gpus(draft.layout),
                    draft.batch,
                    draft.execution,
                    recomputed,
                    imbalance,
                    _time_over_work(draft, packed),
                )


def _time_over_work(draft: Draft, packed: PackedStage | None) -> float:
    """Microbatches that a rank lives through over those that hold a row, with pipeline stages of equal operations."""
    ranks, waits = draft.layout.data_parallel_size, draft.layout.pipeline_model_parallel_size - 1
    if packed is None:
        return (draft.batch.num_microbatches + waits) / draft.batch.num_microbatches
    rows = packed.rows_of_steps
    return (row_slots(rows, ranks) + len(rows) * waits * ranks) / int(rows.sum())


def _legal_draft(loaded: LoadedRecipe, gpus: int, before: Before, packed: PackedStage | None) -> Draft | None:
    try:
        return draft_plan(loaded, world_size=gpus, before=before, packed=packed)
    except RecipeError:
        return None


def _frugality(candidate: Candidate) -> tuple[float, int]:
    """Of one layout's candidates the last one in this order needs the least memory."""
    return candidate.recomputed, -candidate.batch.micro_batch_size


def _counted(candidate: Candidate, recipe: Recipe) -> Suggestion:
    layout, batch, execution = candidate.layout, candidate.batch, candidate.execution
    ranks = memory_per_rank(
        recipe.model, layout, batch, execution, precision=recipe.precision, rl=recipe.rl, fp8=recipe.fp8, on_gpu=True
    )
    fullest = max(ranks, key=lambda rank: rank.total)
    return Suggestion(candidate, fullest, _overrides(recipe, candidate))


def _fits(suggestion: Suggestion, gpu_memory: int) -> bool:
    return fits(suggestion.memory.total, gpu_memory)


def _overrides(recipe: Recipe, candidate: Candidate) -> tuple[str, ...]:
    """The keys whose value is not the recipe's."""
    execution, training = candidate.execution, recipe.training
    pairs: dict[str, tuple[Any, Any]] = {
        f"parallel.{key}": (getattr(candidate.layout, key), getattr(recipe.parallel, key))
        for key in ParallelRecipe.model_fields
    }
    pairs["training.micro_batch_size"] = candidate.batch.micro_batch_size, training.micro_batch_size
    for key in _RECOMPUTE:
        pairs[f"training.{key}"] = getattr(execution, key), getattr(training, key)
    return tuple(f"{key}={_written(wanted)}" for key, (wanted, has) in pairs.items() if wanted != has)


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _with(loaded: LoadedRecipe, **changes: dict[str, Any]) -> LoadedRecipe:
    """The same with other values in some sections, which the plan checks."""
    recipe = loaded.recipe
    sections = {name: getattr(recipe, name).model_copy(update=values) for name, values in changes.items()}
    return replace(loaded, recipe=recipe.model_copy(update=sections))


def _nothing_legal(recipe: Recipe, gpus: int) -> str:
    tensor = listed([size for size in legal_tensor_parallel_sizes(recipe.model) if size <= NODE])
    training = recipe.training
    batch = f"global_batch_size {training.global_batch_size}"
    if training.ramp_tokens:
        batch += (
            f", ramp_start_batch_size {training.ramp_start_batch_size} and ramp_increment {training.ramp_increment}"
        )
    return (
        f"--world-size {gpus}: no layout is legal: TP can be {tensor}, and {gpus} / (TP x PP) must divide {batch}; "
        "take another number of GPUs or another batch"
    )


def _nothing_fits(smallest: Suggestion, gpus: int, gpu_memory: int) -> str:
    need = smallest.memory.total
    return (
        f"--gpu-memory {gpu_memory / 1e9:,.4g} GB: nothing fits {gpus} GPUs with {RESERVE:.0%} of each kept free.\n"
        f"  smallest need  {need / 1e9:,.4g} GB on the fullest rank: {smallest.set_line}\n"
        f"  Take GPUs of at least {need / (1 - RESERVE) / 1e9:,.4g} GB, more of them, or a lower "
        "training.sequence_length."
    )
