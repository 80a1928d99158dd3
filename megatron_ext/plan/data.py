"""What a stage reads: of data that is there and fits, as much of each source as it may give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_tools.blend_plan import available_samples
from data_tools.dataset import StoredDataset
from megatron_ext.plan.blends import plan_blends
from megatron_ext.plan.datasets import Pair, dataset_prefix, read_data, tokenizer_folder
from megatron_ext.plan.domains import domains_of
from megatron_ext.plan.packing import plan_rows
from megatron_ext.plan.stage_plan import (
    BatchPlan,
    CadencePlan,
    DataPlan,
    PackedPlan,
    ParentPlan,
    PhasePlan,
    SourcePlan,
    SourceRead,
)
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.locate import shown
from megatron_ext.recipe.problems import Problems


def plan_data(
    loaded: LoadedRecipe,
    batch: BatchPlan,
    cadence: CadencePlan,
    roundings: list[str],
    *,
    phase_samples: Sequence[int],
    store: Path,
    parent: ParentPlan | None = None,
    trained_on: Sequence[SourceRead] = (),
    may_be_provisional: bool = False,
) -> DataPlan:
    """Decides what each source gives to the stage.

    Args:
        loaded: What was asked.
        batch: How many samples the stage reads.
        cadence: How many held-out samples a validation reads.
        roundings: Takes a sentence for each source that gives fewer than was asked.
        phase_samples: Samples of each phase.
        store: Run root, whose `prepared/` keeps the counts of packed rows.
        parent: The stages that this one continues, with what they have read.
        trained_on: What all stages behind the weights have read, continued or not; none of it measures them.
        may_be_provisional: Whether `declared_tokens` may stand for data that is not built yet. Then a missing
            tokenizer is no problem either: nothing can be made with it before there is one. If not, counts of packed
            rows that are not in the store are put there.

    Raises:
        DataError: Everything that is missing, damaged, or does not fit the recipe.
        RecipeError: A share that needs more passes than `max_epochs` allows.
    """
    before = parent.sources if parent is not None else ()
    tokenizer, pairs = read_data(loaded, may_be_provisional=may_be_provisional, trained_on=trained_on)
    sizes = [_size(loaded, index, pair["prefix"]) for index, pair in enumerate(pairs)]
    packed = _packed(loaded, pairs, roundings, store=store, is_kept=not may_be_provisional)
    read = _read_before(loaded, [data_id for _, data_id in sizes], before)
    _note_lookalikes(loaded, sizes, before, roundings)
    names = [source.source for source in loaded.sources]
    phases = plan_blends(
        loaded,
        batch,
        roundings,
        phase_samples=phase_samples,
        tokens={
            name: rows.rows * batch.sequence_length if rows is not None else tokens
            for name, (tokens, _), rows in zip(names, sizes, packed, strict=True)
        },
        read=read,
    )
    _note_new_lengths(read, phases, batch, roundings)
    sources = tuple(
        _plan_source(loaded, index, pair, phases, batch, read=read.get(names[index]), packed=packed[index])
        for index, pair in enumerate(pairs)
    )
    for source, pair in zip(sources, pairs, strict=True):
        if (held_out := pair["validation_prefix"]) is not None:
            _note_short_held_out(source, held_out, batch, cadence, roundings)
    return DataPlan(
        tokenizer=tokenizer_folder(loaded),
        tokenizer_fingerprint=tokenizer.fingerprint if tokenizer is not None else "",
        tokenizer_vocab_size=tokenizer.vocab_size if tokenizer is not None else loaded.recipe.model.vocab_size,
        eod_id=tokenizer.eod_id if tokenizer is not None else -1,
        sources=sources,
        phases=phases,
        document_isolation=loaded.recipe.data.document_isolation,
        packing=loaded.recipe.data.packing,
        long_documents=loaded.recipe.data.long_documents,
        store=shown(store) if loaded.recipe.data.packing != "none" else "",
    )


def _size(loaded: LoadedRecipe, index: int, dataset: StoredDataset | None) -> tuple[int, str]:
    """Tokens of a source and their identity."""
    if dataset is not None:
        return dataset.tokens, dataset.data_id
    source = loaded.sources[index]
    assert source.declared_tokens is not None, "a missing dataset without a declared size is a problem"
    return source.declared_tokens, f"declared-{source.source}-{source.declared_tokens}"


def _packed(
    loaded: LoadedRecipe, pairs: Sequence[Pair], roundings: list[str], *, store: Path, is_kept: bool
) -> list[PackedPlan | None]:
    """The rows of each source; None where samples are cut from documents laid end to end.

    Raises:
        DataError: A source of which no document is left for a row.
    """
    if loaded.recipe.data.packing == "none":
        return [None] * len(pairs)
    problems = Problems()
    rows = [
        plan_rows(loaded, index, pair["prefix"], problems, store=store, is_kept=is_kept)
        for index, pair in enumerate(pairs)
    ]
    problems.raise_data_error()
    declared = [source.source for source, pair in zip(loaded.sources, pairs, strict=True) if pair["prefix"] is None]
    if declared:
        roundings.append(
            f"data.packing best_fit: the sizes of {', '.join(declared)} are declared, so rows without padding, "
            "and no document that is cut or left out, are supposed there."
        )
    return list(rows)


def _read_before(loaded: LoadedRecipe, data_ids: Sequence[str], there: Sequence[SourceRead]) -> dict[str, SourceRead]:
    """What the stages before have read of each source that they read; the content counts, not the name.

    Raises:
        DataError: A source of theirs holds other tokens now.
    """
    read = {before.data_id: before for before in there}
    data_id_then = {before.source: before.data_id for before in there}
    problems = Problems()
    for index, (source, data_id) in enumerate(zip(loaded.sources, data_ids, strict=True)):
        then = data_id_then.get(source.source, data_id)
        if then != data_id:
            message = (
                f"source {source.source!r} was read as {then[:16]}… in the stages before and holds {data_id[:16]}… "
                "now; restore the data, or give the new data a name of its own. The same text in other shards is other "
                "data: its documents are read in another order"
            )
            problems.add(loaded.origin(("sources", index, "prefix")), ("prefix",), message)
    problems.raise_data_error()
    pairs = zip(loaded.sources, data_ids, strict=True)
    return {source.source: read[data_id] for source, data_id in pairs if data_id in read}


def _note_lookalikes(
    loaded: LoadedRecipe, sizes: Sequence[tuple[int, str]], before: Sequence[SourceRead], roundings: list[str]
) -> None:
    """Says where a source may be one that the stages before have read, in other shards: no data_id tells it."""
    data_ids = {data_id for _, data_id in sizes}
    gone = {read.tokens: read for read in before if read.data_id not in data_ids}
    known = {read.data_id for read in before}
    for source, (tokens, data_id) in zip(loaded.sources, sizes, strict=True):
        if data_id not in known and (read := gone.get(tokens)) is not None:
            roundings.append(
                f"source {source.source}: has {tokens:,} tokens, as many as source {read.source} that the stages "
                "before have read, and another data_id. If it is the same text in other shards, its reading begins "
                f"anew: {min(tokens, read.tokens_read):,} tokens may be read again."
            )


def _note_new_lengths(
    read: Mapping[str, SourceRead], phases: Sequence[PhasePlan], batch: BatchPlan, roundings: list[str]
) -> None:
    """Says what becomes of a window that the stages before have begun at another sequence length."""
    length = batch.sequence_length
    cursors = {given.source: given.cursor for phase in reversed(phases) for given in phase.sources}
    for name, before in read.items():
        then = before.sequence_lengths[-1] if before.sequence_lengths else length
        if then != length and cursors[name] == "continue":
            roundings.append(
                f"source {name}: training.sequence_length is {length:,}, and was {then:,} when it was last read: what "
                "is left of the window is laid end to end and cut anew. No token is left out; labels that do not "
                "follow their input there are not trained on, and the ledger counts them as masked."
            )


def _plan_source(
    loaded: LoadedRecipe,
    index: int,
    pair: dict[str, StoredDataset | None],
    phases: Sequence[PhasePlan],
    batch: BatchPlan,
    *,
    read: SourceRead | None,
    packed: PackedPlan | None,
) -> SourcePlan:
    source = loaded.sources[index]
    dataset, held_out = pair["prefix"], pair["validation_prefix"]
    tokens, data_id = _size(loaded, index, dataset)
    given = [part for phase in phases for part in phase.sources if part.source == source.source]
    samples = sum(part.samples for part in given)
    pass_tokens = packed.rows * batch.sequence_length if packed is not None else tokens
    return SourcePlan(
        source=source.source,
        domain=source.domain,
        **domains_of(source, dataset.tokens_by_domain if dataset is not None else None)._asdict(),
        prefix=dataset_prefix(loaded, index, "prefix"),
        validation_prefix=dataset_prefix(loaded, index, "validation_prefix"),
        data_id=data_id,
        validation_data_id=held_out.data_id if held_out is not None else data_id,
        documents=dataset.documents if dataset is not None else 0,
        tokens=tokens,
        share=given[0].share if len(phases) == 1 else samples / batch.total_samples,
        samples=samples,
        epochs=samples * batch.sequence_length / pass_tokens,
        max_epochs=given[-1].max_epochs,
        tokens_before=read.tokens_read if read is not None else 0,
        is_declared=dataset is None,
        packed=packed,
        licence=source.licence,
        revision=source.revision,
        available_at=source.available_at,
    )


def _note_short_held_out(
    source: SourcePlan, held_out: StoredDataset, batch: BatchPlan, cadence: CadencePlan, roundings: list[str]
) -> None:
    there = available_samples(held_out.tokens, 1, batch.sequence_length)
    if there < cadence.validation_samples:
        roundings.append(
            f"source {source.source}: validation reads {there:,} samples, all of its held-out set, "
            f"of the {cadence.validation_samples:,} of training.validation_tokens."
        )
