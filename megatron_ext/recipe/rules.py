"""Rules of a recipe that join two keys and need neither data nor a number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data_tools.schema import wrong_sum
from data_tools.strict_yaml import KeyPath
from megatron_ext.recipe.layer_pattern import MAMBA, MLP, parse_pattern
from megatron_ext.recipe.schema import (
    BlendEntry,
    DataRecipe,
    ModelRecipe,
    OptimizerRecipe,
    ParallelRecipe,
    ProfileRecipe,
    Recipe,
    ScheduleRecipe,
    Section,
    TrainingRecipe,
)
from megatron_ext.recipe.stage_rules import Broken, broken_stage_rules


def broken_rules(section: Section) -> Iterator[Broken]:
    """What is wrong inside one section whose values are all valid alone."""
    rules = _RULES.get(type(section))
    return rules(section) if rules is not None else iter(())


def _model_rules(model: ModelRecipe) -> Iterator[Broken]:
    pattern = parse_pattern(model.hybrid_layer_pattern)
    if pattern.count(MAMBA) and not model.mamba_num_heads:
        yield ("mamba_num_heads",), "0, but the pattern has Mamba-2 layers (M); set at least mamba_num_groups heads"
    elif model.mamba_num_heads % model.mamba_num_groups:
        yield from _must_divide(model, "mamba_num_groups", "mamba_num_heads")
    if pattern.count(MLP) and not model.ffn_hidden_size:
        yield ("ffn_hidden_size",), "0, but the pattern has MLP layers (-); set their inner width"
    if model.num_attention_heads % model.num_query_groups:
        yield from _must_divide(model, "num_query_groups", "num_attention_heads")
    if model.position_embedding_type == "rope" and model.kv_channels % 2:
        yield ("kv_channels",), f"{model.kv_channels} is odd; RoPE turns pairs of channels, so make it even"


def _must_divide(model: ModelRecipe, part: str, whole: str) -> Iterator[Broken]:
    divisor, number = getattr(model, part), getattr(model, whole)
    yield (part,), f"{divisor} does not divide {whole} {number}; legal: {listed(divisors(number))}"


def _training_rules(training: TrainingRecipe) -> Iterator[Broken]:
    start, increment, full = training.ramp_start_batch_size, training.ramp_increment, training.global_batch_size
    if not training.ramp_tokens:
        for key in ("ramp_start_batch_size", "ramp_increment"):
            if getattr(training, key) is not None:
                yield (
                    (key,),
                    f"{getattr(training, key)}, but ramp_tokens is 0 and nothing ramps; set that, or remove this",
                )
    elif start is None or increment is None:
        missing = " and ".join(k for k in ("ramp_start_batch_size", "ramp_increment") if getattr(training, k) is None)
        yield ("ramp_tokens",), f"{training.ramp_tokens:,}, but a ramp needs {missing} too; set it, or set this to 0"
    elif start >= full:
        yield ("ramp_start_batch_size",), f"{start} is not below global_batch_size {full}, to which it grows; lower it"
    elif (full - start) % increment:
        yield (
            ("ramp_increment",),
            f"{increment} does not divide global_batch_size {full} - ramp_start_batch_size {start} = {full - start}; "
            f"legal: {listed(divisors(full - start))}",
        )


def _profile_rules(profile: ProfileRecipe) -> Iterator[Broken]:
    if profile.steps is not None:
        first, last = map(int, profile.steps.split("-"))
        if not 1 <= first <= last:
            yield ("steps",), f"{profile.steps}: steps count from 1 and the first is not behind the last; such as 5-7"


def _optimizer_rules(optimizer: OptimizerRecipe) -> Iterator[Broken]:
    if optimizer.min_lr > optimizer.lr:
        yield ("min_lr",), f"{optimizer.min_lr!r} is above lr {optimizer.lr!r}; it is the end of the decay, lower it"


def _schedule_rules(schedule: ScheduleRecipe) -> Iterator[Broken]:
    if schedule.warmup_tokens and schedule.warmup_ratio:
        yield (
            ("warmup_ratio",),
            f"{schedule.warmup_ratio:g}, and warmup_tokens is {schedule.warmup_tokens:,}; write one of them, 0 for the "
            "other",
        )
    if schedule.style == "wsd" and schedule.decay_tokens is None:
        yield ("decay_tokens",), "not set, but style wsd ends in a decay; set the tokens of that decay"
    if schedule.style != "wsd" and schedule.decay_tokens is not None:
        yield (
            ("decay_tokens",),
            f"{schedule.decay_tokens:,} is read with style wsd only, and style is {schedule.style}; "
            "remove it (or set it to null where a file above sets it)",
        )
    if schedule.style == "constant" and schedule.horizon_tokens is not None:
        yield (
            ("horizon_tokens",),
            f"{schedule.horizon_tokens:,}, but style constant never decays and reads no horizon; "
            "remove it (or set it to null where a file above sets it)",
        )


def _parallel_rules(parallel: ParallelRecipe) -> Iterator[Broken]:
    if parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1:
        yield (
            ("sequence_parallel",),
            "true, but tensor_model_parallel_size is 1 and there are no ranks to split a sequence over; "
            "raise that, or set this to false",
        )
    needed = [key for key in ("use_distributed_optimizer", "overlap_grad_reduce") if not getattr(parallel, key)]
    if parallel.overlap_param_gather and needed:
        yield (
            ("overlap_param_gather",),
            f"true, but {' and '.join(needed)} false: weights are gathered in the forward pass only where ranks update "
            "parts of them, and core overlaps both or none; set to true what is false, or this to false",
        )


def _data_rules(data: DataRecipe) -> Iterator[Broken]:
    if data.blend is not None:
        yield from _blend_rules(data.blend, ("blend",))
    if data.phases is not None and data.blend is not None:
        yield ("phases",), "set together with blend; a stage has the one or the other, set one of them to null"
    if data.packing == "none" and data.long_documents != "split":
        yield (
            ("long_documents",),
            f"{data.long_documents}, but packing is none: there a long document runs on in the next row and nothing of "
            "it is lost; set packing to best_fit, or write split",
        )
    for index, phase in enumerate(data.phases or ()):
        yield from _blend_rules(phase.blend, ("phases", index, "blend"))


def _blend_rules(blend: tuple[BlendEntry, ...], key: KeyPath) -> Iterator[Broken]:
    if message := wrong_sum([entry.share for entry in blend]):
        yield key, message
    seen: dict[str, int] = {}
    for index, entry in enumerate(blend):
        first = seen.setdefault(entry.source, index)
        if first != index:
            yield (
                (*key, index, "source"),
                f"{entry.source} stands in blend[{first}] already; give one entry both shares",
            )


def _recipe_rules(recipe: Recipe) -> Iterator[Broken]:
    yield from broken_stage_rules(recipe)
    if recipe.stage != "rl" and recipe.data.blend is None and recipe.data.phases is None:
        yield ("data", "blend"), "required and not set; write blend, or phases that each have one"
    if recipe.init_from is not None and recipe.parent is not None:
        yield (
            ("init_from",),
            f"{recipe.init_from}, and continue is {recipe.parent}: the one begins anew with weights, the other goes on "
            "with everything; set one of them to null",
        )
    if recipe.resize_vocabulary and recipe.init_from is None and not recipe.awaits_weights:
        yield (
            ("resize_vocabulary",),
            "true, and no weights are taken that have a vocabulary; set init_from or remove it",
        )
    phases = recipe.data.phases
    total = sum(phase.tokens for phase in phases or ())
    if phases is not None and total != recipe.budget.tokens:
        yield (
            ("data", "phases"),
            f"tokens {' + '.join(f'{phase.tokens:,}' for phase in phases)} sum to {total:,}, budget.tokens is "
            f"{recipe.budget.tokens:,}; change the one or the other",
        )


_RULES: Mapping[type[Section], Callable[[Any], Iterator[Broken]]] = {
    ModelRecipe: _model_rules,
    TrainingRecipe: _training_rules,
    ProfileRecipe: _profile_rules,
    OptimizerRecipe: _optimizer_rules,
    ScheduleRecipe: _schedule_rules,
    ParallelRecipe: _parallel_rules,
    DataRecipe: _data_rules,
    Recipe: _recipe_rules,
}


def divisors(number: int) -> list[int]:
    """Every whole number that divides a positive one, rising.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    return sorted({*small, *(number // candidate for candidate in small)})


def listed(values: list[int]) -> str:
    """Numbers as messages list them: `1, 2, 4`."""
    return ", ".join(map(str, values))
