"""What an sft stage refuses of its data, and the chat template that the data was made with."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from data_tools.blend_files import BlendFile
from data_tools.chat_template_files import SHIPPED_TEMPLATE, template_source
from data_tools.dataset import StoredDataset, read_dataset
from data_tools.document_view import place_of
from data_tools.drawing import Ints
from data_tools.errors import DataError
from data_tools.pack_rows import Rows, SourceCount
from data_tools.strict_yaml import KeyPath
from megatron_ext.plan.datasets import tokenizer_folder
from megatron_ext.plan.sft_rows import draw_of_stage, held_out_rows, read_conversations
from megatron_ext.plan.stage_plan import SourcePlan
from megatron_ext.recipe.load import LoadedBlend, LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import SftRecipe
from megatron_ext.recipe.step_weight import MAX_STEP_WEIGHT, SAMPLE_WEIGHT, sft_losses, too_heavy


def refuse_amounts(loaded: LoadedRecipe, blend: LoadedBlend, problems: Problems) -> None:
    """Refuses nested blends that write tokens or epochs: a stage that counts conversations takes shares."""
    for index, part in enumerate(blend.parts):
        if isinstance(part, BlendFile) and _has_amounts(part):
            key: KeyPath = (*blend.key, index, "source")
            message = (
                f"{part.path}: divides by tokens or epochs, and an sft stage deals out conversations; write shares "
                "there, or a weighting"
            )
            problems.add(loaded.origin(key), key, message)


def _has_amounts(blend: BlendFile) -> bool:
    is_here = any(entry.tokens is not None or entry.epochs is not None for entry in blend.recipe.entries)
    return is_here or any(isinstance(part, BlendFile) and _has_amounts(part) for part in blend.parts)


def refuse_overlong(loaded: LoadedRecipe, sources: Sequence[SourcePlan], options: SftRecipe) -> NoReturn:
    """Refuses conversations, drawn or held out, that no row holds, where the recipe does not say what becomes of them.

    Raises:
        DataError: With those of every source; at least one has some.
    """
    problems = Problems()
    lengths = [read_conversations(source.prefix).lengths for source in sources]
    rounds = draw_of_stage(sources, options, sizes=[len(found) for found in lengths], seed=loaded.recipe.seed)
    for index, source in enumerate(sources):
        drawn = np.unique(np.hstack([part.conversation[part.source == index] for part in rounds]))
        _add_overlong(loaded, f"drawn from {source.prefix}", source.prefix, lengths[index], drawn, problems)
    for source in sources:
        prefix = source.validation_prefix
        held_out = read_conversations(prefix).lengths
        _add_overlong(loaded, f"held out in {prefix}", prefix, held_out, np.arange(len(held_out)), problems)
    problems.raise_data_error()
    raise AssertionError("a row was too short, and every conversation fits")


def _add_overlong(
    loaded: LoadedRecipe, which: str, prefix: str, lengths: Ints, numbers: Ints, problems: Problems
) -> None:
    length, key = loaded.recipe.training.sequence_length, ("sft", "overlong")
    too_long = numbers[lengths[numbers] > length]
    if len(too_long):
        longest = int(too_long[lengths[too_long].argmax()])
        message = (
            f"error, and {len(too_long):,} of {len(numbers):,} conversations {which} "
            f"{'has' if len(too_long) == 1 else 'have'} more than training.sequence_length {length:,} tokens, the "
            f"longest {int(lengths[longest]):,} ({place_of(read_dataset(prefix), longest)}); lengthen the rows, or "
            "write drop, truncate, split or trim-thinking"
        )
        problems.add(loaded.origin(key), key, message)


def refuse_untrained(loaded: LoadedRecipe, name: str, count: SourceCount, problems: Problems) -> None:
    """Refuses conversations of which nothing would be trained on."""
    key: KeyPath = ("sft", "untrained")
    number = count.untrained.conversations
    which = "conversation or piece" if number == 1 else "conversations or pieces"
    message = (
        f"error, and {number:,} {which} of source {name!r} {'has' if number == 1 else 'have'} no token to train on: no "
        f"assistant's turn is left of {'it' if number == 1 else 'them'}; write skip to leave "
        f"{'it' if number == 1 else 'them'} out"
    )
    problems.add(loaded.origin(key), key, message)


def refuse_heavy_steps(loaded: LoadedRecipe, rows: Rows, options: SftRecipe) -> None:
    """Refuses steps that weigh more than core can count.

    Raises:
        RecipeError: With the largest `global_batch_size` that is sure to do.
    """
    key: KeyPath = ("training", "global_batch_size")
    problems = Problems()
    for loss in sorted(sft_losses(options)):
        weight = heaviest_step(rows, loss=loss)
        if weight > MAX_STEP_WEIGHT:
            size = loaded.recipe.training.global_batch_size
            message = too_heavy(
                f"{size:,} {options.batch_unit} with sft.loss {loss}: the trained tokens or conversations of a step",
                weight=weight,
                most=size * MAX_STEP_WEIGHT // weight,
            )
            problems.add(loaded.origin(key), key, message)
    problems.raise_recipe_error()


def heaviest_step(rows: Rows, *, loss: str) -> int:
    """What divides the gradient of the step that weighs most, rounded row by row as `Batch.weight` is.

    Args:
        rows: At least one.
        loss: `token` or `sample`.
    """
    of_pieces = rows.targets if loss == "token" else SAMPLE_WEIGHT * rows.targets / rows.targets_of_conversation
    of_rows = np.rint(np.add.reduceat(of_pieces, rows.first_piece[:-1])).astype(np.int64)
    return int(np.add.reduceat(of_rows, rows.first_row[:-1]).max())


def refuse_no_rows(loaded: LoadedRecipe, sources: Sequence[SourcePlan], options: SftRecipe, problems: Problems) -> None:
    """Refuses a stage of which no conversation is left, with the lengths of each source."""
    length = loaded.recipe.training.sequence_length
    key: KeyPath = ("training", "sequence_length")
    for source in sources:
        lengths = read_conversations(source.prefix).lengths
        message = (
            f"{length:,}, and with sft.overlong {options.overlong} no conversation is left to train on; those of "
            f"source {source.source!r} have {int(lengths.min()):,} to {int(lengths.max()):,} tokens; "
            "lengthen the rows, or write another sft.overlong"
        )
        problems.add(loaded.origin(key), key, message)


def check_held_out(loaded: LoadedRecipe, sources: Sequence[SourcePlan], options: SftRecipe, problems: Problems) -> None:
    """Refuses held-out conversations that cannot be validated on."""
    for index, source in enumerate(sources):
        rows = held_out_rows(source.validation_prefix, options, sequence_length=loaded.recipe.training.sequence_length)
        if not rows.rows:
            lengths = read_conversations(source.validation_prefix).lengths
            message = (
                f"{source.validation_prefix}: none of its {len(lengths):,} conversations leaves a token to train on in "
                f"a row of training.sequence_length {rows.length:,} with sft.overlong {options.overlong}; they have "
                f"{int(lengths.min()):,} to {int(lengths.max()):,} tokens; raise training.sequence_length, write "
                "another sft.overlong, or hold out others"
            )
            problems.add(loaded.origin(("sources", index, "validation_prefix")), ("validation_prefix",), message)


def chat_template(loaded: LoadedRecipe, datasets: Sequence[StoredDataset], problems: Problems) -> tuple[str, str]:
    """The file of the template that made the conversations, and its hash; it goes with the stage's checkpoints."""
    made = {dataset.chat.template_sha256: dataset for dataset in datasets if dataset.chat is not None}
    if not made:
        return "", ""
    if len(made) > 1:
        (first, one), (second, other) = list(made.items())[:2]
        message = (
            f"{one.prefix} was made with chat template {first[:12]}…, {other.prefix} with {second[:12]}…; a model "
            "learns one format: make one of them again"
        )
        problems.add(loaded.origin(("data", "blend")), ("data", "blend"), message)
        return "", ""
    ((wanted, dataset),) = made.items()
    folder = Path(tokenizer_folder(loaded))
    candidates = [(SHIPPED_TEMPLATE.read_text(encoding="utf-8"), SHIPPED_TEMPLATE)]
    with contextlib.suppress(DataError):  # a folder without one; the conversations may have been made with ours
        candidates.insert(0, template_source(folder, None))
    for text, file in candidates:
        if hashlib.sha256(text.encode()).hexdigest() == wanted:
            return str(file), wanted
    assert dataset.chat is not None, "it was made with a template"
    key: KeyPath = ("data", "tokenizer")
    message = (
        f"{folder}: has not the chat template that made {dataset.prefix} ({dataset.chat.template}, {wanted[:12]}…); "
        f"copy that one to {folder / 'chat_template.jinja'}"
    )
    problems.add(loaded.origin(key), key, message)
    return "", wanted
