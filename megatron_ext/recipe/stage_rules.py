"""Which keys a kind of stage needs, and which would mean nothing in it."""

from __future__ import annotations

from collections.abc import Iterator

from data_tools.strict_yaml import KeyPath
from megatron_ext.recipe.rl_rules import broken_rl_rules
from megatron_ext.recipe.schema import Recipe, SftRecipe
from megatron_ext.recipe.step_weight import heavy_step_rules

Broken = tuple[KeyPath, str]
"""A key, relative to its section, and its value, rule and remedy."""


def broken_stage_rules(recipe: Recipe) -> Iterator[Broken]:
    """What does not go with the recipe's stage."""
    yield from heavy_step_rules(recipe)
    if recipe.stage == "rl":
        yield from broken_rl_rules(recipe)
        return
    if recipe.stage == "sft":
        yield from _sft_rules(recipe)
    else:
        yield from _pretrain_rules(recipe)
    yield from _not_rl_rules(recipe)


def _not_rl_rules(recipe: Recipe) -> Iterator[Broken]:
    if recipe.rl is not None:
        yield ("rl",), f"read with stage rl only, and stage is {recipe.stage}; remove it"
    for key in ("steps", "prompts", "epochs"):
        if value := getattr(recipe.budget, key):
            yield ("budget", key), f"{value:,g}: measures stage rl only, and stage is {recipe.stage}; remove it"
    if not recipe.training.validation_tokens:
        yield (
            ("training", "validation_tokens"),
            f"required and not set; stage {recipe.stage} measures a held-out loss: write tokens per source, such as 1M",
        )


def _pretrain_rules(recipe: Recipe) -> Iterator[Broken]:
    if not recipe.budget.tokens:
        yield ("budget", "tokens"), "required and not set; write the processed tokens of this stage, such as 400B"
    if recipe.budget.examples:
        yield ("budget", "examples"), f"{recipe.budget.examples:,}: counts conversations of stage sft; remove it"
    if recipe.sft is not None:
        yield ("sft",), "read with stage sft only, and stage is pretrain; remove it"


def _sft_rules(recipe: Recipe) -> Iterator[Broken]:
    sft = recipe.sft or SftRecipe()
    length = recipe.training.sequence_length
    if not recipe.budget.examples:
        yield ("budget", "examples"), "required and not set; write how many conversations to draw, such as 4.8M"
    if recipe.parent is not None:
        yield ("continue",), f"{recipe.parent}: an sft stage takes weights only, and continues no cursor or schedule"
    if (isolation := recipe.data.document_isolation) != "full":
        yield (
            ("data", "document_isolation"),
            f"{isolation}: conversations that share a row must not meet in attention, convolution or state; "
            "stage sft needs full",
        )
    if length % sft.pad_multiple:
        yield ("sft", "pad_multiple"), f"{sft.pad_multiple} does not divide training.sequence_length {length:,}"
    if recipe.schedule.style == "wsd":
        yield ("schedule", "style"), "wsd needs the tokens of its decay; in stage sft write cosine, linear or constant"
    for index, entry in enumerate(recipe.data.blend or ()):
        if entry.cursor != "continue":
            yield ("data", "blend", index, "cursor"), f"{entry.cursor}: an sft stage draws anew; remove it"
    yield from _unread_in_sft(recipe)


def _unread_in_sft(recipe: Recipe) -> Iterator[Broken]:
    """Keys that count tokens, of which packing decides how many there are, or rows of a microbatch."""
    training, schedule = recipe.training, recipe.schedule
    if recipe.budget.tokens:
        yield ("budget", "tokens"), f"{recipe.budget.tokens:,}: stage sft is measured in budget.examples; remove it"
    if recipe.data.phases is not None:
        yield ("data", "phases"), "stage sft reads one blend; write data.blend"
    if recipe.data.packing != "none":
        yield (
            ("data", "packing"),
            f"{recipe.data.packing}: stage sft packs conversations whatever this says, and sft.overlong decides about "
            "long ones; remove it",
        )
    if training.micro_batch_size != 1:
        yield ("training", "micro_batch_size"), f"{training.micro_batch_size}: a packed row is a microbatch; set 1"
    if training.ramp_tokens:
        yield ("training", "ramp_tokens"), f"{training.ramp_tokens:,}: stage sft has no batch ramp; set 0"
    for key in ("warmup_tokens", "horizon_tokens"):
        if value := getattr(schedule, key):
            yield (
                ("schedule", key),
                f"{value:,}: how many tokens an sft stage reads follows from packing; "
                + ("write warmup_ratio" if key == "warmup_tokens" else "remove it"),
            )
