"""A blend file with a budget, decided: what every source gives, or why it cannot be read so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_tools.blend_floors import unread
from data_tools.blend_plan import Allotment, Blend, Budget, Entry, allot, nearest_multiple, shortages, written_total
from data_tools.errors import RecipeError


@dataclass(frozen=True)
class Resolved:
    """A blend with a budget.

    Attributes:
        total_samples: Samples of all sources.
        allotments: One for each source, in the order in which the blend names them first.
        notes: A sentence for everything that was rounded or joined.
    """

    total_samples: int
    allotments: tuple[Allotment, ...]
    notes: tuple[str, ...]


def resolve(blend: Blend, *, tokens: int | None, sequence_length: int) -> Resolved:
    """Decides what every source of a blend gives.

    A source that is reached on several ways gives the sum, and may be read as often as the strictest allows.

    Args:
        blend: What is mixed.
        tokens: The budget in processed tokens; None where every entry says its tokens or epochs.
        sequence_length: Tokens of a sample.

    Raises:
        RecipeError: Amounts that do not fit the budget, a source that gives less than one sample, or one
            that would be read more often than it may.
    """
    notes: list[str] = []
    if tokens is None:
        total = written_total(blend, sequence_length)
    else:
        total = nearest_multiple(tokens, sequence_length)
        if total * sequence_length != tokens:
            notes.append(
                f"--tokens {tokens:,} is {tokens / sequence_length:,.2f} samples of {sequence_length:,} tokens: "
                f"rounded to {total:,} samples, {total * sequence_length:,} tokens."
            )
    allotments = allot(blend, total_samples=total, sequence_length=sequence_length, notes=notes)
    _refuse_what_cannot_be_read(blend, allotments, total, sequence_length)
    return Resolved(total, allotments, tuple(dict.fromkeys(notes)))


def _refuse_what_cannot_be_read(blend: Blend, allotments: Sequence[Allotment], total: int, length: int) -> None:
    is_fixed = blend.weighting == "fixed" and not any(isinstance(entry.of, Blend) for entry in blend.entries)
    has_amounts = any(_has_amounts(entry) for entry in blend.entries)
    budget = Budget(
        key="--tokens",
        sequence_length=length,
        total_samples=total,
        most_steps=0 if has_amounts else total - 1,
        shares_are_written=is_fixed and not has_amounts,
    )
    problems = [
        f"{allotment.places[0]}: {float(allotment.share):.3g} of {total:,} samples is less than one, so "
        f"{allotment.source!r} would not be read; raise the share or --tokens, or remove the entry"
        for allotment in allotments
        if not allotment.samples
    ]
    wrong = [*shortages(allotments, budget), *unread(allotments, budget, may_raise=not has_amounts)]
    problems += [f"{allotments[index].places[0]}: {message}" for index, message in wrong]
    if problems:
        raise RecipeError("\n".join([*([f"{len(problems)} problems"] if problems[1:] else []), *problems]))


def _has_amounts(entry: Entry) -> bool:
    """Whether something below is written in tokens or epochs, so that shares move with the budget."""
    if entry.tokens is not None or entry.epochs is not None:
        return True
    return isinstance(entry.of, Blend) and any(_has_amounts(inner) for inner in entry.of.entries)
