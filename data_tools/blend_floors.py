"""Whether each source of a blend is read as often as `min_epochs` wants, and what to change where it is not.

A source has been passed `min_epochs` times when no further whole sample fits into so many passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

from data_tools.blend_plan import (
    Allotment,
    Budget,
    exact,
    one_of,
    samples_in,
    share_between,
    split_samples,
    tokens_in,
    written_share,
)


def unread(sources: Sequence[Allotment], budget: Budget, *, may_raise: bool) -> Iterator[tuple[int, str]]:
    """The sources that would be read less often than they must.

    Args:
        sources: What each gives, and what was read of it before.
        budget: What all give together.
        may_raise: Whether a larger budget is a remedy.

    Yields:
        Index, and what the source gives, what is wanted, and up to three changes of which each makes it suffice.
    """
    wanted = [samples_in(source, source.min_epochs, budget.sequence_length) for source in sources]
    for index, source in enumerate(sources):
        if source.samples < wanted[index]:
            yield index, _message(index, sources, wanted, budget, may_raise=may_raise)


def _message(index: int, sources: Sequence[Allotment], wanted: list[int], budget: Budget, *, may_raise: bool) -> str:
    source, length = sources[index], budget.sequence_length
    gives, total = source.samples * length, budget.total_samples * length
    before = (
        f"  read     {source.tokens_before:,} before, in earlier phases and stages\n" if source.tokens_before else ""
    )
    return (
        f'source "{source.source}" is read less often than it must.\n'
        f"  gives    {gives:,} processed tokens ({float(100 * source.share):.1f} % of budget {total:,})\n{before}"
        f"  wanted   {source.tokens:,} tokens x min_epochs {source.min_epochs:g} = "
        f"{tokens_in(source.tokens, source.min_epochs):,}\n"
        f"  {_remedies(index, sources, wanted, budget, may_raise=may_raise)}"
    )


def _remedies(index: int, sources: Sequence[Allotment], wanted: list[int], budget: Budget, *, may_raise: bool) -> str:
    source, length = sources[index], budget.sequence_length
    read = Fraction(source.tokens_before + source.samples * length, source.tokens)
    remedies = [f"lower min_epochs to {float(Fraction(math.floor(10_000 * read), 10_000)):g}"]
    most = samples_in(source, source.max_epochs, length)
    share = share_between(wanted[index], most, budget.total_samples)
    if len(sources) > 1 and share is not None and share[0] < 1 and budget.shares_are_written:
        remedies.insert(0, f"raise the share to {written_share(share[0])} and lower others by as much")
    if may_raise:
        remedies.insert(0, _larger_budget(index, sources, wanted, budget))
    return one_of(remedies)


def _larger_budget(index: int, sources: Sequence[Allotment], wanted: list[int], budget: Budget) -> str:
    """The smallest budget of whole steps that is enough, with the caps that it needs raised."""
    length = budget.sequence_length
    shares = [exact(source.share) for source in sources]
    steps = math.ceil((wanted[index] / shares[index] - budget.ramp_samples) / budget.step_samples)
    samples = budget.ramp_samples + steps * budget.step_samples
    caps = []
    for source, needs in zip(sources, split_samples(shares, samples), strict=True):
        if needs > samples_in(source, source.max_epochs, length):
            passes = -(-(source.tokens_before + needs * length + source.label_tokens) // source.tokens)
            caps.append(f" and max_epochs of {source.source} to {passes:,}")
    return f"raise {budget.key} to {samples * length:,}{''.join(caps)}"
