"""An sft stage whose data is not built yet, planned from what its sources are said to have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_tools.drawing import Ints
from megatron_ext.plan.datasets import Pair
from megatron_ext.plan.sft_sources import Size, size_of
from megatron_ext.plan.stage_plan import DataPlan, SftPlan, SftSource, SourcePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import SftRecipe


class PackedStage(NamedTuple):
    """What an sft stage reads, decided before its steps are.

    Attributes:
        rows: Rows of all steps.
        conversations: In them.
        rows_of_steps: `[steps]` rows of each step.
        data: Of the stage's plan.
        sft: Of the stage's plan.
    """

    rows: int
    conversations: int
    rows_of_steps: Ints
    data: DataPlan
    sft: SftPlan


def declared_sizes(loaded: LoadedRecipe, pairs: Sequence[Pair]) -> list[Size]:
    """The size of each source, counted where it is built and declared where it is not.

    Raises:
        RecipeError: A source that is not built declares its tokens alone.
    """
    problems = Problems()
    sizes = []
    for index, (source, pair) in enumerate(zip(loaded.sources, pairs, strict=True)):
        dataset, held_out = pair["prefix"], pair["validation_prefix"]
        if dataset is not None and held_out is not None:
            sizes.append(size_of(dataset, held_out))
            continue
        tokens, documents = source.declared_tokens, source.declared_documents
        assert tokens is not None, "a missing dataset without a declared size is a problem"
        if documents is None:
            message = (
                f"not set, and source {source.source!r} is not built: an sft stage deals out conversations; write how "
                "many there are, or build it"
            )
            key = ("sources", index, "declared_documents")
            problems.add(loaded.origin(key), ("declared_documents",), message)
            continue
        identity = f"declared-{source.source}-{documents}-{tokens}"
        sizes.append(Size(documents, tokens, identity, identity, is_declared=True))
    problems.raise_recipe_error()
    return sizes


def declared_stage(data: DataPlan, options: SftRecipe, length: int, step: int, roundings: list[str]) -> PackedStage:
    """Rows as if every conversation had its source's mean length, cut at a row's, and rows were full.

    Args:
        data: What each source gives.
        options: How.
        length: Tokens of a row.
        step: `global_batch_size`.
        roundings: Takes a sentence that says so.
    """
    sources = tuple(_declared_source(source, options, length) for source in data.sources)
    tokens = sum(source.packed_tokens for source in sources)
    conversations = sum(source.conversations for source in sources)
    rows = max(1, -(-tokens // length))
    samples = rows if options.batch_unit == "rows" else conversations
    ends = np.minimum(np.arange(-(-samples // step) + 1) * step, samples) * rows // samples
    rows_of_steps = np.maximum(1, ends[1:] - ends[:-1])
    roundings.append(
        "sizes are declared: rows are counted as if each conversation had its source's mean length and rows were full; "
        "what is too long, and what is trained on, is not known."
    )
    sft = SftPlan(
        options=options,
        store="",
        rows=rows,
        pieces=conversations,
        trained_tokens=tokens,
        padding=rows * length - tokens,
        most_rows_of_step=int(rows_of_steps.max()),
        sources=sources,
        chat_template="",
        chat_template_sha256="",
    )
    return PackedStage(rows, conversations, rows_of_steps, data, sft)


def _declared_source(source: SourcePlan, options: SftRecipe, length: int) -> SftSource:
    tokens = source.samples * source.tokens // source.documents
    packed = source.samples * min(length, source.tokens // source.documents)
    return SftSource(
        source=source.source,
        has_turns=None,
        conversations=source.samples,
        distinct=min(source.documents, source.samples // options.passes),
        tokens=tokens,
        packed_tokens=packed,
        trained_tokens=packed,
        pieces=source.samples,
        dropped=0,
        truncated=0,
        trimmed=0,
        split=0,
        untrained=0,
    )
