"""What each source gives to each phase, and whether it may: nested blends divided, passes counted over the chain."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from data_tools.blend_files import BlendFile, SourceFile, as_source_or_blend
from data_tools.blend_plan import Allotment, Blend, Entry, allot
from data_tools.strict_yaml import KeyPath
from megatron_ext.plan.stage_plan import BatchPlan, PhasePlan, PhaseSource, SourceRead
from megatron_ext.plan.supply import check_supply
from megatron_ext.recipe.load import LoadedBlend, LoadedRecipe
from megatron_ext.recipe.problems import Problems


def plan_blends(
    loaded: LoadedRecipe,
    batch: BatchPlan,
    roundings: list[str],
    *,
    phase_samples: Sequence[int],
    tokens: Mapping[str, int],
    read: Mapping[str, SourceRead],
) -> tuple[PhasePlan, ...]:
    """Decides what each source gives to each phase.

    Args:
        loaded: What was asked.
        batch: The stage's numbers.
        roundings: Takes a sentence for everything that is rounded or joined.
        phase_samples: Samples of each phase.
        tokens: Processed tokens of one pass over each source, by name.
        read: What the stages before have read, by name.

    Raises:
        RecipeError: A source that gives less than one sample, that would be read more often than it may, or
            whose cursor is to go on in two ways.
    """
    problems = Problems()
    tokens_before = {name: before.tokens_read for name, before in read.items()}
    moved = {name for name, before in read.items() if before.is_moved}
    lengths = {name: before.sequence_lengths for name, before in read.items()}
    phases: list[PhasePlan] = []
    for blend, samples in zip(loaded.blends, phase_samples, strict=True):
        entries = entry_of_each_source(blend)
        allotments = [
            replace(given, tokens_before=tokens_before.get(given.source, 0))
            for given in allotments_of(
                loaded, blend, samples, tokens, sequence_length=batch.sequence_length, roundings=roundings
            )
        ]
        _note_unread(loaded, blend, allotments, entries, samples, problems)
        moved |= {name for name, entry in entries.items() if blend.entries[entry].cursor != "continue"}
        _note_cursors(loaded, blend, allotments, entries, moved, problems)
        _note_replayed_cuttings(loaded, blend, entries, lengths, phases, batch, problems)
        lengths |= {name: () for name, entry in entries.items() if blend.entries[entry].cursor == "replay"}
        check_supply(loaded, blend, allotments, batch, problems, samples=samples, entry_of=entries)
        phases.append(
            PhasePlan(samples=samples, sources=tuple(_phase_source(given, blend, entries) for given in allotments))
        )
        for given in allotments:
            tokens_before[given.source] = given.tokens_before + given.samples * batch.sequence_length
    problems.raise_recipe_error()
    return tuple(phases)


def allotments_of(
    loaded: LoadedRecipe,
    blend: LoadedBlend,
    samples: int,
    tokens: Mapping[str, int],
    *,
    sequence_length: int,
    roundings: list[str],
) -> tuple[Allotment, ...]:
    """Whole samples of every source of a blend; whether it has them is not looked at.

    Args:
        loaded: What was asked.
        blend: Of the stage or a phase.
        samples: What all sources together give.
        tokens: Processed tokens of one pass over each source, by name.
        sequence_length: Tokens of a sample; 1 where sizes and samples both count conversations.
        roundings: Takes a sentence for everything that is rounded or joined.
    """
    label_tokens = 0 if loaded.recipe.data.packing == "best_fit" else 1
    entries = (
        Entry(
            of=as_source_or_blend(part, tokens, label_tokens=label_tokens),
            place=str(loaded.origin((*blend.key, index))),
            share=entry.share,
            max_epochs=entry.max_epochs,
            min_epochs=entry.min_epochs,
        )
        for index, (entry, part) in enumerate(zip(blend.entries, blend.parts, strict=True))
    )
    whole = Blend("stage", tuple(entries))
    return allot(whole, total_samples=samples, sequence_length=sequence_length, notes=roundings)


def entry_of_each_source(blend: LoadedBlend) -> dict[str, int]:
    """The first entry that leads to each source."""
    found: dict[str, int] = {}
    for index, part in enumerate(blend.parts):
        for source in _sources(part):
            found.setdefault(source.recipe.source, index)
    return found


def _sources(part: SourceFile | BlendFile) -> Iterator[SourceFile]:
    if isinstance(part, BlendFile):
        yield from part.sources()
    else:
        yield part


def _phase_source(given: Allotment, blend: LoadedBlend, entries: Mapping[str, int]) -> PhaseSource:
    return PhaseSource(
        source=given.source,
        share=float(given.share),
        samples=given.samples,
        max_epochs=given.max_epochs,
        tokens_before=given.tokens_before,
        cursor=blend.entries[entries[given.source]].cursor,
    )


def _note_unread(
    loaded: LoadedRecipe,
    blend: LoadedBlend,
    allotments: Sequence[Allotment],
    entries: Mapping[str, int],
    samples: int,
    problems: Problems,
) -> None:
    for given in allotments:
        if given.samples == 0:
            entry = entries[given.source]
            key: KeyPath = (*blend.key, entry, "share")
            part = blend.parts[entry]
            tokens = "budget.tokens" if len(loaded.blends) == 1 else "tokens of the phase and of budget"
            message = (
                f"{float(given.share):g} of {samples:,} samples is less than one, so {given.source!r} would not "
                f"be read; raise the share or {tokens}, or "
                + ("remove the entry" if isinstance(part, SourceFile) else f"take the source out of {part.path}")
            )
            problems.add(loaded.origin(key), key, message)


def _note_cursors(
    loaded: LoadedRecipe,
    blend: LoadedBlend,
    allotments: Sequence[Allotment],
    entries: Mapping[str, int],
    moved: Collection[str],
    problems: Problems,
) -> None:
    """A cursor that cannot do what is asked of it, or may not; `moved` are the sources of which one was moved."""
    for given in allotments:
        index = entries[given.source]
        cursor, key = blend.entries[index].cursor, (*blend.key, index, "cursor")
        others = {
            entry.cursor
            for entry, part in zip(blend.entries, blend.parts, strict=True)
            if any(source.recipe.source == given.source for source in _sources(part))
        }
        if len(others) > 1:
            ways = " and ".join(sorted(others))
            problems.add(loaded.origin(key), key, f"source {given.source!r} is to {ways} at once; write one of them")
        elif cursor != "continue" and not given.tokens_before:
            message = f"{cursor}, but source {given.source!r} was not read before; remove it"
            problems.add(loaded.origin(key), key, message)
        elif cursor != "continue" and given.max_epochs <= 1:
            message = (
                f"{cursor} reads documents of source {given.source!r} again, and max_epochs {given.max_epochs:g} "
                "forbids it; raise max_epochs above 1, or write continue"
            )
            problems.add(loaded.origin(key), key, message)
        elif given.source in moved and given.max_epochs <= 1:
            key = (*blend.key, index, "max_epochs")
            message = (
                f"source {given.source!r} goes on where fresh or replay has moved it to in an earlier phase or stage: "
                f"documents may be read again, and {given.max_epochs:g} forbids it; raise max_epochs above 1"
            )
            problems.add(loaded.origin(key), key, message)


def _note_replayed_cuttings(
    loaded: LoadedRecipe,
    blend: LoadedBlend,
    entries: Mapping[str, int],
    cut_at: Mapping[str, Sequence[int]],
    phases: Sequence[PhasePlan],
    batch: BatchPlan,
    problems: Problems,
) -> None:
    """A replay that would change in the middle of a stage which tokens a sample holds.

    `cut_at` holds the lengths at which the stages before read each source, as far as no replay has begun it again.
    """
    read_here = {source.source for phase in phases for source in phase.sources}
    for name in read_here & entries.keys() & cut_at.keys():
        key: KeyPath = (*blend.key, entries[name], "cursor")
        if blend.entries[entries[name]].cursor == "replay" and {*cut_at[name]} - {batch.sequence_length}:
            lengths = " and ".join(f"{length:,}" for length in cut_at[name])
            message = (
                f"replay, but source {name!r} was read at sequence_length {lengths} in the stages before, and goes on "
                "from there in an earlier phase; replay it in a stage of its own, which continues this one"
            )
            problems.add(loaded.origin(key), key, message)
