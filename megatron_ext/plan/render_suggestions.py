"""Suggested layouts as a table with their options, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from data_tools.quantities import format_exact
from megatron_ext.plan.datasets import has_sizes
from megatron_ext.plan.render import terminal
from megatron_ext.plan.render_table import frame
from megatron_ext.plan.suggest import NODE, RESERVE, Suggestion, untried_pad_multiple
from megatron_ext.recipe.load import LoadedRecipe

_COLUMNS = ("#", "tensor", "pipeline", "context", "data", "micro-batch", "microbatches", "recompute", "GB a rank")


def print_suggestions(found: Sequence[Suggestion], loaded: LoadedRecipe, *, gpus: int, gpu_memory: int) -> None:
    """Prints the suggestions, how they are ranked, and what selects each.

    Args:
        found: The best first.
        loaded: The recipe that they are for.
        gpus: Processes of the run.
        gpu_memory: Bytes of one GPU.
    """
    console = terminal()
    console.print(f"{loaded.path}: {gpus} GPUs of {gpu_memory / 1e9:,.4g} GB, {RESERVE:.0%} of each kept free", "")
    is_shared = any(one.candidate.layout.context_parallel_size > 1 for one in found)
    table = frame(*(name for name in _COLUMNS if is_shared or name != "context"), "idle", "done again")
    for column in table.columns:
        column.justify = "right"
        column.no_wrap = True
    for number, one in enumerate(found, start=1):
        layout, batch = one.candidate.layout, one.candidate.batch
        table.add_row(
            str(number),
            *map(str, one.candidate.sizes),
            *([str(layout.context_parallel_size)] if is_shared else []),
            str(layout.data_parallel_size),
            str(batch.micro_batch_size),
            format_exact(batch.num_microbatches),
            one.candidate.execution.recompute,
            _gigabytes(one.memory.total),
            f"{one.candidate.idle:.1%}",
            f"{one.candidate.recomputed:.1%}",
        )
    console.print(table, "", sep="\n")
    for number, one in enumerate(found, start=1):
        console.print(f"{number:>2}  {one.set_line or 'as the recipe says'}", soft_wrap=True)
    for sentence in ("", *_notes(found, loaded)):
        console.print(sentence, soft_wrap=True)


def _gigabytes(size: int) -> str:
    """Bytes in GB, to three digits at least.

    >>> _gigabytes(1_234_567_890_123), _gigabytes(61_340_000_000), _gigabytes(12_345_678)
    ('1,234.6', '61.3', '0.0123')
    """
    gigabytes = size / 1e9
    return f"{gigabytes:,.1f}" if gigabytes >= 100 else f"{gigabytes:.3g}"


def _notes(found: Sequence[Suggestion], loaded: LoadedRecipe) -> list[str]:
    notes = [
        "ranked by   idle + done again (shares of a step without them), then least "
        f"{'context, least ' if any(one.candidate.layout.context_parallel_size > 1 for one in found) else ''}tensor, "
        "least pipeline, largest micro-batch; a rule of thumb that predicts no speed: time a few steps of the first "
        "ones",
    ]
    options = loaded.recipe.sft
    if options is not None and options.batch_unit == "conversations" and not has_sizes(loaded):
        notes.append(
            "microbatches  counted as if each conversation filled a row, for the data is not built: packed, there are "
            "fewer, and ranks idle longer"
        )
    if (pad := untried_pad_multiple(found, loaded.recipe)) is not None:
        notes.append(
            f"context     none was tried: it cuts each conversation into 2 x context pieces, and sft.pad_multiple is "
            f"{pad}; ask again with --set sft.pad_multiple={math.lcm(pad, 2 * NODE)}, which makes it another stage"
        )
    if loaded.recipe.training.backend == "auto":
        notes.append("backend     auto is counted as te; where te cannot run, ask again with training.backend=local")
    if not all(one.memory.is_calibrated for one in found):
        notes.append("memory      activations of te are computed, not yet compared with a measurement")
    return notes


def suggestions_json(found: Sequence[Suggestion]) -> str:
    """A JSON list, the best first: sizes, bytes of the fullest rank, shares of a step's work, overrides."""
    return json.dumps(
        [
            {
                "layout": one.candidate.layout.model_dump(),
                "micro_batch_size": one.candidate.batch.micro_batch_size,
                "num_microbatches": one.candidate.batch.num_microbatches,
                "recompute": one.candidate.execution.recompute,
                "memory": one.memory.model_dump() | {"total": one.memory.total},
                "idle": one.candidate.idle,
                "recomputed": one.candidate.recomputed,
                "set": one.overrides,
            }
            for one in found
        ],
        indent=2,
    )
