"""Whether each source can supply its share within its permitted passes, and what to change if not."""

from __future__ import annotations

import math
from fractions import Fraction

from data_tools.strict_yaml import KeyPath
from megatron_ext.plan.batch import split_samples
from megatron_ext.plan.stage_plan import BatchPlan, SourcePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems


def tokens_in(tokens: int, max_epochs: float) -> int:
    """Whole tokens of some passes over a source; `max_epochs` is read as the decimal that was written."""
    return math.floor(Fraction(repr(max_epochs)) * tokens)


def available_samples(tokens: int, max_epochs: float, sequence_length: int) -> int:
    """Samples that a source can give in `max_epochs` passes.

    A sample starts every `sequence_length` tokens and reads one more, the label of its last token.
    The tokens run on from one pass into the next, so only the very end needs that extra token.

    >>> available_samples(1025, 1, 256), available_samples(1024, 1, 256), available_samples(1024, 2, 256)
    (4, 3, 7)
    """
    return max(0, (tokens_in(tokens, max_epochs) - 1) // sequence_length)


def check_supply(loaded: LoadedRecipe, sources: tuple[SourcePlan, ...], batch: BatchPlan) -> None:
    """Refuses a blend that would repeat a source more often than it may.

    Raises:
        RecipeError: For each source that cannot supply its share: what it needs, what it has, and
            up to three changes of which each makes this source suffice.
    """
    problems = Problems()
    has = [available_samples(source.tokens, source.max_epochs, batch.sequence_length) for source in sources]
    for index, source in enumerate(sources):
        if source.samples > has[index]:
            key: KeyPath = ("data", "blend", index, "share")
            problems.add(loaded.origin(key), key, _message(index, sources, has, batch))
    problems.raise_recipe_error()


def _message(index: int, sources: tuple[SourcePlan, ...], has: list[int], batch: BatchPlan) -> str:
    source = sources[index]
    length = batch.sequence_length
    needed = source.samples * length
    product = tokens_in(source.tokens, source.max_epochs)
    label = " + 1 for the last label" if needed == product else ""
    percent = f"{100 * source.share:.1f} % of budget {batch.total_tokens:,}"
    return (
        f'source "{source.source}" cannot supply its share.\n'
        f"  needed   {needed:,} processed tokens{label} ({percent})\n"
        f"  has      {source.tokens:,} tokens x max_epochs {source.max_epochs:g} = {product:,}\n"
        f"  {_remedies(index, sources, has, batch)}"
    )


def _remedies(index: int, sources: tuple[SourcePlan, ...], has: list[int], batch: BatchPlan) -> str:
    source = sources[index]
    passes = -(-(source.samples * batch.sequence_length + 1) // source.tokens)
    remedies = [f"raise max_epochs to {passes:,}"]
    share = _share_below(has[index], batch.total_samples)
    if len(sources) > 1 and share is not None:
        remedies.insert(0, f"lower the share to {share} and raise others by as much")
    steps = _most_steps(sources, has, batch)
    if steps:
        remedies.insert(0, f"lower budget.tokens to {steps * batch.tokens_per_step:,}")
    text = ", or ".join(filter(None, [", ".join(remedies[:-1]), remedies[-1]]))
    return f"{text[0].upper()}{text[1:]}."


def _share_below(samples: int, total: int) -> str | None:
    """The largest share of four digits that some samples can fill; None where there is none."""
    share = Fraction(10_000 * samples // total, 10_000)
    return f"{float(share):.4f}" if share else None


def _most_steps(sources: tuple[SourcePlan, ...], has: list[int], batch: BatchPlan) -> int:
    """Steps of the largest budget that all sources can supply with these shares; 0 if there is none."""
    shares = [source.share for source in sources]
    limits = (math.ceil(can / (share * batch.global_batch_size)) for can, share in zip(has, shares, strict=True))
    # Remainders may let one step more or less fit than the quota says; more than was asked is no remedy.
    steps = min(batch.total_steps - 1, min(limits) + 1)
    while steps and any(
        needs > can for needs, can in zip(split_samples(shares, steps * batch.global_batch_size), has, strict=True)
    ):
        steps -= 1
    return steps
