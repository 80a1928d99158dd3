"""What each source of an sft stage gives: conversations, by share, within the passes that are permitted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from data_tools.blend_plan import Allotment
from data_tools.dataset import StoredDataset
from data_tools.strict_yaml import KeyPath
from megatron_ext.plan.blends import allotments_of, entry_of_each_source
from megatron_ext.plan.datasets import dataset_prefix
from megatron_ext.plan.domains import domains_of
from megatron_ext.plan.sft_checks import refuse_amounts
from megatron_ext.plan.stage_plan import SourcePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import SftRecipe

_BLEND: KeyPath = ("data", "blend")


class Size(NamedTuple):
    """What a source has."""

    documents: int
    tokens: int
    data_id: str
    validation_data_id: str
    is_declared: bool = False
    tokens_by_domain: Mapping[str, int] | None = None


def size_of(dataset: StoredDataset, held_out: StoredDataset) -> Size:
    """Of a built source."""
    return Size(
        dataset.documents,
        dataset.tokens,
        dataset.data_id,
        held_out.data_id,
        tokens_by_domain=dataset.tokens_by_domain,
    )


def plan_sources(
    loaded: LoadedRecipe, sizes_in_order: Iterable[Size], options: SftRecipe, roundings: list[str]
) -> tuple[SourcePlan, ...]:
    """What each source gives; shares are of conversations.

    Args:
        loaded: What was asked, of stage sft.
        sizes_in_order: Of each source.
        options: How often it is read.
        roundings: Takes a sentence for everything that is rounded or joined.

    Raises:
        RecipeError: A source that would be read more or less often than it may, or not at all.
    """
    problems = Problems()
    every = list(sizes_in_order)
    blend = loaded.blends[0]
    refuse_amounts(loaded, blend, problems)
    problems.raise_recipe_error()
    names = [source.source for source in loaded.sources]
    sizes = {name: size.documents for name, size in zip(names, every, strict=True)}
    allotments = allotments_of(
        loaded, blend, loaded.recipe.budget.examples, sizes, sequence_length=1, roundings=roundings
    )
    entries = entry_of_each_source(blend)
    _check_supply(loaded, allotments, entries, options, problems)
    problems.raise_recipe_error()
    given = {allotment.source: allotment for allotment in allotments}
    return tuple(
        SourcePlan(
            source=source.source,
            domain=source.domain,
            **domains_of(source, every[index].tokens_by_domain)._asdict(),
            prefix=dataset_prefix(loaded, index, "prefix"),
            validation_prefix=dataset_prefix(loaded, index, "validation_prefix"),
            data_id=every[index].data_id,
            validation_data_id=every[index].validation_data_id,
            documents=every[index].documents,
            tokens=every[index].tokens,
            share=float(given[source.source].share),
            samples=given[source.source].samples * options.passes,
            epochs=given[source.source].samples * options.passes / every[index].documents,
            max_epochs=given[source.source].max_epochs,
            is_declared=every[index].is_declared,
            licence=source.licence,
            revision=source.revision,
            available_at=source.available_at,
        )
        for index, source in enumerate(loaded.sources)
    )


def _check_supply(
    loaded: LoadedRecipe,
    allotments: Sequence[Allotment],
    entries: dict[str, int],
    options: SftRecipe,
    problems: Problems,
) -> None:
    examples = loaded.recipe.budget.examples
    for given in allotments:
        key: KeyPath = (*_BLEND, entries[given.source], "share")
        size, read = given.tokens, given.samples * options.passes
        if not given.samples:
            message = (
                f"{float(given.share):g} of {examples:,} conversations is less than one, so {given.source!r} would not "
                "be read; raise the share or budget.examples, or remove the entry"
            )
            problems.add(loaded.origin(key), key, message)
        elif read > given.max_epochs * size:
            most = int(examples * given.max_epochs * size / read)
            message = (
                f'source "{given.source}" cannot supply its share.\n'
                f"  needed   {read:,} conversations = {given.samples:,} x sft.passes {options.passes}\n"
                f"  has      {size:,} conversations x max_epochs {given.max_epochs:g} = "
                f"{given.max_epochs * size:,.0f}\n"
                f"  Lower budget.examples to {most:,}, or raise max_epochs to {math.ceil(read / size)}."
            )
            problems.add(loaded.origin(key), key, message)
        elif read < given.min_epochs * size:
            message = (
                f'source "{given.source}" is read less often than it must.\n'
                f"  gives    {read:,} conversations = {given.samples:,} x sft.passes {options.passes}\n"
                f"  wanted   {size:,} conversations x min_epochs {given.min_epochs:g} = "
                f"{given.min_epochs * size:,.0f}\n"
                f"  Raise budget.examples to {math.ceil(examples * given.min_epochs * size / read):,}, or lower "
                f"min_epochs to {math.floor(10_000 * read / size) / 10_000:g}."
            )
            problems.add(loaded.origin(key), key, message)
