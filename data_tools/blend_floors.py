"""Whether each source of a blend is read as often as `min_epochs` wants, and what to change where it is not.

A source has been passed `min_epochs` times when no further whole sample fits into so many passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

from data_tools.blend_plan import Allotment, Budget, available_samples, exact, split_samples, tokens_in


def unread(sources: Sequence[Allotment], budget: Budget, *, may_raise: bool) -> Iterator[tuple[int, str]]:
    """The sources that would be read less often than they must.

    Args:
        sources: What each gives, and what was read of it before.
        budget: What all give together.
        may_raise: Whether a larger budget is a remedy.

    Yields:
        Index, and what the source gives, what is wanted, and up to three changes of which each makes it suffice.
    """
    wanted = [_samples_in(source, source.min_epochs, budget.sequence_length) for source in sources]
    for index, source in enumerate(sources):
        if source.samples < wanted[index]:
            yield index, _message(index, sources, wanted, budget, may_raise=may_raise)


def _samples_in(source: Allotment, epochs: float, length: int) -> int:
    return available_samples(
        source.tokens, epochs, length, tokens_before=source.tokens_before, label_tokens=source.label_tokens
    )


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
    share = Fraction(-(-10_000 * wanted[index] // budget.total_samples), 10_000)
    if len(sources) > 1 and share < 1 and budget.shares_are_written:
        remedies.insert(0, f"raise the share to {float(share):.4f} and lower others by as much")
    samples = _fewest_samples(index, sources, wanted, budget) if may_raise else 0
    if samples:
        remedies.insert(0, f"raise {budget.key} to {samples * length:,}")
    text = ", or ".join(filter(None, [", ".join(remedies[:-1]), remedies[-1]]))
    return f"{text[0].upper()}{text[1:]}."


def _fewest_samples(index: int, sources: Sequence[Allotment], wanted: list[int], budget: Budget) -> int:
    """Samples of the smallest budget of whole steps that is enough; 0 where another source cannot supply it."""
    shares = [exact(source.share) for source in sources]
    steps = math.ceil((wanted[index] / shares[index] - budget.ramp_samples) / budget.step_samples)
    samples = budget.ramp_samples + steps * budget.step_samples
    needed = split_samples(shares, samples)
    has = [_samples_in(source, source.max_epochs, budget.sequence_length) for source in sources]
    return samples if all(needs <= can for needs, can in zip(needed, has, strict=True)) else 0
