"""What an sft stage reads: conversations drawn from its sources, packed into rows, every cut counted and permitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from data_tools.blend_plan import Allotment
from data_tools.dataset import StoredDataset
from data_tools.pack_rows import Rows, SourceCount
from data_tools.quantities import format_exact
from data_tools.strict_yaml import KeyPath
from data_tools.tokenizer import TokenizerFacts
from megatron_ext.plan.blends import allotments_of, entry_of_each_source
from megatron_ext.plan.datasets import dataset_prefix, read_data, tokenizer_folder
from megatron_ext.plan.sft_checks import chat_template, check_held_out, check_lengths, refuse_amounts, refuse_untrained
from megatron_ext.plan.sft_rows import rows_of_stage
from megatron_ext.plan.stage_plan import DataPlan, SftPlan, SftSource, SourcePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import SftRecipe

_BLEND: KeyPath = ("data", "blend")


class PackedStage(NamedTuple):
    """What an sft stage reads, decided before its steps are.

    Attributes:
        rows: Rows of all steps.
        conversations: In them.
        most_rows_of_step: Rows of the largest step.
        data: Of the stage's plan.
        sft: Of the stage's plan.
    """

    rows: int
    conversations: int
    most_rows_of_step: int
    data: DataPlan
    sft: SftPlan


def plan_sft(loaded: LoadedRecipe, roundings: list[str], *, store: str, is_kept: bool) -> PackedStage:
    """Draws and packs the conversations of a stage.

    Args:
        loaded: What was asked, of stage sft.
        roundings: Takes a sentence for everything that is left out, cut or rounded.
        store: Run root whose store may hold the rows.
        is_kept: Whether rows that are not there are put into it.

    Raises:
        DataError: Data that is missing, damaged, does not fit, or may not be cut as it would have to be.
        RecipeError: A source that would be read more often than it may.
    """
    tokenizer, pairs = read_data(loaded, may_be_provisional=False)
    assert tokenizer is not None, "a tokenizer that must be there and is not is a problem"
    options = loaded.recipe.sft or SftRecipe()
    training = loaded.recipe.training
    datasets = [pair["prefix"] for pair in pairs if pair["prefix"] is not None]
    held_out = [pair["validation_prefix"] for pair in pairs if pair["validation_prefix"] is not None]
    problems = Problems()
    sources = _plan_sources(loaded, datasets, held_out, options, problems, roundings)
    check_lengths(loaded, [*datasets, *held_out], options, problems)
    problems.raise_data_error()
    rows = rows_of_stage(
        sources,
        options,
        sequence_length=training.sequence_length,
        step=training.global_batch_size,
        seed=loaded.recipe.seed,
        store=store,
        is_kept=is_kept,
    )
    for source, count in zip(sources, rows.counts, strict=True):
        _note_changes(source.source, count, roundings)
        if count.untrained.conversations and options.untrained == "error":
            refuse_untrained(loaded, source.source, count, problems)
    check_held_out(loaded, sources, options, problems)
    if not rows.rows:
        problems.add(loaded.origin(("sft",)), ("sft",), "no conversation is left to train on; see what is dropped")
    template, template_hash = chat_template(loaded, [*datasets, *held_out], problems)
    problems.raise_data_error()
    sft = SftPlan(
        options=options,
        store=store,
        rows=rows.rows,
        pieces=len(rows.pieces),
        trained_tokens=int(rows.targets.sum()),
        padding=rows.rows * rows.length - int(rows.pieces.lengths.sum()),
        most_rows_of_step=int((rows.first_row[1:] - rows.first_row[:-1]).max()),
        sources=tuple(
            _sft_source(source.source, dataset, count)
            for source, dataset, count in zip(sources, datasets, rows.counts, strict=True)
        ),
        chat_template=template,
        chat_template_sha256=template_hash,
    )
    return _packed_stage(rows, _data_plan(loaded, tokenizer, sources), sft)


def _packed_stage(rows: Rows, data: DataPlan, sft: SftPlan) -> PackedStage:
    return PackedStage(rows.rows, int(rows.conversations.sum()), sft.most_rows_of_step, data, sft)


def _data_plan(loaded: LoadedRecipe, tokenizer: TokenizerFacts, sources: tuple[SourcePlan, ...]) -> DataPlan:
    return DataPlan(
        tokenizer=tokenizer_folder(loaded),
        tokenizer_fingerprint=tokenizer.fingerprint,
        tokenizer_vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        sources=sources,
        document_isolation=loaded.recipe.data.document_isolation,
    )


def _plan_sources(
    loaded: LoadedRecipe,
    datasets: Sequence[StoredDataset],
    held_out: Sequence[StoredDataset],
    options: SftRecipe,
    problems: Problems,
    roundings: list[str],
) -> tuple[SourcePlan, ...]:
    """What each source gives; shares are of conversations."""
    blend = loaded.blends[0]
    refuse_amounts(loaded, blend, problems)
    problems.raise_recipe_error()
    names = [source.source for source in loaded.sources]
    sizes = {name: dataset.documents for name, dataset in zip(names, datasets, strict=True)}
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
            domain_shares=tuple(source.domains().items()) if len(source.domains()) > 1 else (),
            prefix=dataset_prefix(loaded, index, "prefix"),
            validation_prefix=dataset_prefix(loaded, index, "validation_prefix"),
            data_id=datasets[index].data_id,
            validation_data_id=held_out[index].data_id,
            documents=datasets[index].documents,
            tokens=datasets[index].tokens,
            share=float(given[source.source].share),
            samples=given[source.source].samples * options.passes,
            epochs=given[source.source].samples * options.passes / datasets[index].documents,
            max_epochs=given[source.source].max_epochs,
            is_declared=False,
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


def _note_changes(name: str, count: SourceCount, roundings: list[str]) -> None:
    """A sentence for each thing that became of conversations."""
    said = {
        "dropped": "are too long for a row and left out",
        "truncated": "are too long for a row and lose their end",
        "trimmed": "are too long for a row and lose the tail of their thinking",
        "split": "are too long for a row and cut into pieces that do not see each other",
    }
    for what, words in said.items():
        changed = getattr(count, what)
        if changed.conversations:
            tokens = (
                f": {format_exact(changed.tokens)} of {format_exact(count.tokens)} tokens" if changed.tokens else ""
            )
            roundings.append(
                f"source {name}: {format_exact(changed.conversations)} of {format_exact(count.drawn)} conversations "
                f"{words}{tokens}."
            )
    if count.untrained.conversations:
        roundings.append(
            f"source {name}: {format_exact(count.untrained.conversations)} conversations or pieces have no token to "
            f"train on and are left out: {format_exact(count.untrained.tokens)} of {format_exact(count.tokens)} tokens."
        )


def _sft_source(name: str, dataset: StoredDataset, count: SourceCount) -> SftSource:
    return SftSource(
        source=name,
        has_turns=dataset.chat is not None,
        conversations=count.drawn,
        distinct=count.distinct,
        tokens=count.tokens,
        packed_tokens=count.packed,
        trained_tokens=count.targets,
        pieces=count.pieces,
        dropped=count.dropped.conversations,
        truncated=count.truncated.conversations,
        trimmed=count.trimmed.conversations,
        split=count.split.conversations,
        untrained=count.untrained.conversations,
    )
