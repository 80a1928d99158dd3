"""What an sft stage reads: conversations drawn from its sources, packed into rows, every cut counted and permitted."""

from __future__ import annotations

from collections.abc import Sequence

from data_tools.dataset import StoredDataset
from data_tools.pack_rows import SourceCount
from data_tools.packing import OverlongError
from data_tools.quantities import format_exact
from data_tools.tokenizer import TokenizerFacts
from megatron_ext.plan.datasets import read_data, tokenizer_folder
from megatron_ext.plan.sft_checks import (
    chat_template,
    check_held_out,
    refuse_heavy_steps,
    refuse_no_rows,
    refuse_overlong,
    refuse_untrained,
)
from megatron_ext.plan.sft_declared import PackedStage, declared_sizes, declared_stage
from megatron_ext.plan.sft_rows import rows_of_stage
from megatron_ext.plan.sft_sources import plan_sources, size_of
from megatron_ext.plan.stage_plan import DataPlan, SftPlan, SftSource, SourcePlan, SourceRead
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import SftRecipe


def plan_sft(
    loaded: LoadedRecipe, roundings: list[str], *, store: str, is_kept: bool, trained_on: Sequence[SourceRead] = ()
) -> PackedStage:
    """Draws and packs the conversations of a stage.

    Args:
        loaded: What was asked, of stage sft.
        roundings: Takes a sentence for everything that is left out, cut or rounded.
        store: Run root whose store may hold the rows.
        is_kept: Whether rows that are not there are put into it.
        trained_on: What the stages behind the weights have read; none of it measures them.

    Raises:
        DataError: Data that is missing, damaged, does not fit, or may not be cut as it would have to be.
        RecipeError: A source that would be read more often than it may, or a step that core cannot count.
    """
    tokenizer, pairs = read_data(loaded, may_be_provisional=not is_kept, trained_on=trained_on)
    options = loaded.recipe.sft or SftRecipe()
    training = loaded.recipe.training
    if any(pair["prefix"] is None for pair in pairs):
        sources = plan_sources(loaded, declared_sizes(loaded, pairs), options, roundings)
        data = _data_plan(loaded, tokenizer, sources)
        return declared_stage(data, options, training.sequence_length, training.global_batch_size, roundings)
    assert tokenizer is not None, "a tokenizer that must be there and is not is a problem"
    datasets = [pair["prefix"] for pair in pairs if pair["prefix"] is not None]
    held_out = [pair["validation_prefix"] for pair in pairs if pair["validation_prefix"] is not None]
    problems = Problems()
    sources = plan_sources(loaded, map(size_of, datasets, held_out), options, roundings)
    try:
        rows = rows_of_stage(
            sources,
            options,
            sequence_length=training.sequence_length,
            step=training.global_batch_size,
            seed=loaded.recipe.seed,
            store=store,
            is_kept=is_kept,
        )
        check_held_out(loaded, sources, options, problems)
    except OverlongError:
        refuse_overlong(loaded, sources, options)
    for source, count in zip(sources, rows.counts, strict=True):
        _note_changes(source.source, count, roundings)
        if count.untrained.conversations and options.untrained == "error":
            refuse_untrained(loaded, source.source, count, problems)
    if not rows.rows:
        refuse_no_rows(loaded, sources, options, problems)
    template, template_hash = chat_template(loaded, [*datasets, *held_out], problems)
    problems.raise_data_error()
    refuse_heavy_steps(loaded, rows, options)
    rows_of_steps = rows.first_row[1:] - rows.first_row[:-1]
    sft = SftPlan(
        options=options,
        store=store,
        rows=rows.rows,
        pieces=len(rows.pieces),
        trained_tokens=int(rows.targets.sum()),
        padding=rows.rows * rows.length - int(rows.pieces.lengths.sum()),
        most_rows_of_step=int(rows_of_steps.max()),
        sources=tuple(
            _sft_source(source.source, dataset, count)
            for source, dataset, count in zip(sources, datasets, rows.counts, strict=True)
        ),
        chat_template=template,
        chat_template_sha256=template_hash,
    )
    data = _data_plan(loaded, tokenizer, sources)
    return PackedStage(rows.rows, int(rows.conversations.sum()), rows_of_steps, data, sft)


def _data_plan(loaded: LoadedRecipe, tokenizer: TokenizerFacts | None, sources: tuple[SourcePlan, ...]) -> DataPlan:
    return DataPlan(
        tokenizer=tokenizer_folder(loaded),
        tokenizer_fingerprint=tokenizer.fingerprint if tokenizer is not None else "",
        tokenizer_vocab_size=tokenizer.vocab_size if tokenizer is not None else loaded.recipe.model.vocab_size,
        eod_id=tokenizer.eod_id if tokenizer is not None else -1,
        sources=sources,
        document_isolation=loaded.recipe.data.document_isolation,
    )


def _note_changes(name: str, count: SourceCount, roundings: list[str]) -> None:
    """A sentence for each thing that became of conversations."""
    said = {
        "dropped": ("left out", "left out"),
        "truncated": ("loses its end", "lose their end"),
        "trimmed": ("loses the tail of its thinking", "lose the tail of their thinking"),
        "split": ("cut into pieces that do not see each other", "cut into pieces that do not see each other"),
    }
    for what, (one, many) in said.items():
        changed = getattr(count, what)
        if changed.conversations:
            happened = (
                f"is too long for a row and {one}"
                if changed.conversations == 1
                else f"are too long for a row and {many}"
            )
            tokens = (
                f": {format_exact(changed.tokens)} of {format_exact(count.tokens)} tokens" if changed.tokens else ""
            )
            roundings.append(
                f"source {name}: {format_exact(changed.conversations)} of {format_exact(count.drawn)} conversations "
                f"{happened}{tokens}."
            )
    if number := count.untrained.conversations:
        words = ("conversation or piece has", "is") if number == 1 else ("conversations or pieces have", "are")
        roundings.append(
            f"source {name}: {format_exact(number)} {words[0]} no token to train on and {words[1]} left out: "
            f"{format_exact(count.untrained.tokens)} of {format_exact(count.tokens)} tokens."
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
