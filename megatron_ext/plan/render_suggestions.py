"""Suggested layouts as a table with their options, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from rich.table import Table

from data_tools.quantities import format_exact
from megatron_ext.plan.datasets import has_sizes
from megatron_ext.plan.hardware import NODE, RESERVE
from megatron_ext.plan.predict import origin
from megatron_ext.plan.render import terminal
from megatron_ext.plan.render_cost import HELD_AGAINST
from megatron_ext.plan.render_speed import prediction_facts
from megatron_ext.plan.render_table import frame
from megatron_ext.plan.suggest import Candidate, Search, Suggestion, untried_pad_multiple
from megatron_ext.recipe.load import LoadedRecipe

_COLUMNS = ("#", "tensor", "pipeline", "context", "data", "micro-batch", "microbatches", "recompute", "GB a rank")
_PREDICTED = ("tokens/s a GPU", "from", "to", "MFU", "sent", "idle")


def print_suggestions(search: Search, loaded: LoadedRecipe, *, gpus: int, gpu_memory: int, unknown: str = "") -> None:
    """Prints the suggestions, how they are ranked, what selects each, and what does not fit.

    Args:
        search: What came of all legal layouts.
        loaded: The recipe that they are for.
        gpus: Processes of the run.
        gpu_memory: Bytes of one GPU.
        unknown: Why no speed is predicted although a GPU is named.
    """
    console = terminal()
    console.print(f"{loaded.path}: {gpus} GPUs of {gpu_memory / 1e9:,.4g} GB, {RESERVE:.0%} of each kept free", "")
    console.print(_table(search.found), "", sep="\n")
    for number, one in enumerate(search.found, start=1):
        console.print(f"{number:>2}  {one.set_line or 'as the recipe says'}", soft_wrap=True)
    notes = [*_notes(search.found, loaded), *_left_out(search)]
    for sentence in ("", *notes, *([f"speed       not predicted: {unknown}"] if unknown else [])):
        console.print(sentence, soft_wrap=True)


def _table(found: Sequence[Suggestion]) -> Table:
    is_shared = any(one.candidate.layout.context_parallel_size > 1 for one in found)
    more = _PREDICTED if found[0].candidate.prediction is not None else ("idle", "done again")
    table = frame(*(name for name in _COLUMNS if is_shared or name != "context"), *more)
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
            *_speed_cells(one.candidate),
        )
    return table


def _speed_cells(candidate: Candidate) -> list[str]:
    if (prediction := candidate.prediction) is None:
        return [f"{candidate.idle:.1%}", f"{candidate.recomputed:.1%}"]
    step = prediction.step
    return [
        f"{prediction.tokens_per_s:,.0f}",
        *(f"{rate:,.0f}" for rate in prediction.range_per_s),
        f"{prediction.mfu:.1%}",
        f"{step.communication / step.total:.1%}",
        f"{step.idle / step.total:.1%}",
    ]


def _left_out(search: Search) -> list[str]:
    """The sizes that are not in the table, and why."""
    notes = []
    if search.further:
        notes.append(f"further     {search.further} more sizes fit, and stand behind these")
    if search.too_large:
        least = sorted(search.too_large, key=lambda one: one.candidate.all_sizes)
        sizes = ", ".join(f"{_sizes(one.candidate)} ({_gigabytes(one.memory.total)} GB)" for one in least)
        notes.append(f"too large   tensor x pipeline x context, the fullest rank with all computed again: {sizes}")
    return notes


def _sizes(candidate: Candidate) -> str:
    return f"{candidate.sizes[0]} x {candidate.sizes[1]} x {candidate.layout.context_parallel_size}"


def _gigabytes(size: int) -> str:
    """Bytes in GB, to three digits at least.

    >>> _gigabytes(1_234_567_890_123), _gigabytes(61_340_000_000), _gigabytes(12_345_678)
    ('1,234.6', '61.3', '0.0123')
    """
    gigabytes = size / 1e9
    return f"{gigabytes:,.1f}" if gigabytes >= 100 else f"{gigabytes:.3g}"


def _notes(found: Sequence[Suggestion], loaded: LoadedRecipe) -> list[str]:
    notes = [_order(found)]
    if (prediction := found[0].candidate.prediction) is not None:
        notes += [f"speed       {sentence}" for sentence in origin(prediction)]
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
        notes.append(f"memory      activations are an estimate: {HELD_AGAINST}")
    return notes


def _order(found: Sequence[Suggestion]) -> str:
    if found[0].candidate.prediction is not None:
        return (
            "ranked by   predicted time of a step; sent and idle are shares of it. An estimate: time a few steps of "
            "those whose ranges overlap"
        )
    is_shared = any(one.candidate.layout.context_parallel_size > 1 for one in found)
    return (
        "ranked by   idle + done again (shares of a step without them), then least "
        f"{'context, least ' if is_shared else ''}tensor, least pipeline, largest micro-batch; a rule of thumb that "
        "predicts no speed (name a --gpu for that): time a few steps of the first ones"
    )


def suggestions_json(found: Sequence[Suggestion]) -> str:
    """A JSON list, the best first: sizes, bytes of the fullest rank, shares of a step, predicted speed, overrides."""
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
                "prediction": prediction_facts(one.candidate.prediction),
                "set": one.overrides,
            }
            for one in found
        ],
        indent=2,
    )
