"""How much of each source a blend reads: exact samples from shares, sizes or tokens, and what to do where one is short.

Pure whole-number and fraction arithmetic; no file is read here. Three facts hold, and are tested:
samples of all sources sum to the budget's; each is less than one sample from its exact quota; a nested
blend gives what the same sources give with the shares multiplied out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from typing import Literal, Protocol

from data_tools.errors import RecipeError

_PRECISE = Context(prec=30)  # decimal powers are the same on every machine; those of floats are not


def nearest_multiple(tokens: int, unit: int) -> int:
    """How many units are nearest to a number of tokens; halves go up, and at least one.

    >>> nearest_multiple(800_000, 4096), nearest_multiple(1, 4096)
    (195, 1)
    """
    return max(1, (2 * tokens + unit) // (2 * unit))


def exact(number: float | Fraction) -> Fraction:
    """A number as the decimal that was written (0.1 is one tenth), so that nothing hangs on binary rounding."""
    return number if isinstance(number, Fraction) else Fraction(repr(number))


def split_samples(shares: Sequence[float | Fraction], total: int) -> tuple[int, ...]:
    """Whole samples for each share that sum to the total exactly, by the largest remainder.

    Each differs from its exact quota by less than one sample. Floats are read as the decimals that
    were written.

    Args:
        shares: One for each source; they are taken relative to their sum.
        total: Samples to deal out.

    >>> split_samples([0.7, 0.2, 0.1], 16)
    (11, 3, 2)
    """
    parts = [exact(share) for share in shares]
    whole = sum(parts)
    quotas = [total * part / whole for part in parts]
    samples = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda index: (samples[index] - quotas[index], index))
    for index in by_remainder[: total - sum(samples)]:
        samples[index] += 1
    return tuple(samples)


def tokens_in(tokens: int, max_epochs: float) -> int:
    """Whole tokens of some passes over a source; `max_epochs` is read as the decimal that was written."""
    return math.floor(exact(max_epochs) * tokens)


def available_samples(
    tokens: int, max_epochs: float, sequence_length: int, *, tokens_before: int = 0, label_tokens: int = 1
) -> int:
    """Samples that a source can give in `max_epochs` passes, behind what was read of it before.

    A sample starts every `sequence_length` tokens and reads one more, the label of its last token.
    The tokens run on from one pass into the next, so only the very end needs that extra token. Packed rows hold
    their labels themselves: `tokens` are the positions of a pass's rows, and `label_tokens` is 0.

    >>> available_samples(1025, 1, 256), available_samples(1024, 1, 256), available_samples(1024, 2, 256)
    (4, 3, 7)
    """
    return max(0, (tokens_in(tokens, max_epochs) - tokens_before - label_tokens) // sequence_length)


class Supply(Protocol):
    """What one source has and is to give."""

    @property
    def source(self) -> str:
        """Its name."""

    @property
    def tokens(self) -> int:
        """Tokens that it has."""

    @property
    def share(self) -> float | Fraction:
        """Its share of the budget."""

    @property
    def samples(self) -> int:
        """Samples that it is to give."""

    @property
    def max_epochs(self) -> float:
        """Passes over it that may be read."""

    @property
    def min_epochs(self) -> float:
        """Passes over it that must be read."""

    @property
    def tokens_before(self) -> int:
        """Tokens of it that were read before this budget, and count as passes."""

    @property
    def label_tokens(self) -> int:
        """Tokens that its last sample reads beyond its length: 1, or 0 of packed rows."""


@dataclass(frozen=True)
class Budget:
    """What all sources together are to give.

    Attributes:
        key: Where the budget is written, for remedies: `budget.tokens`, `--tokens`.
        sequence_length: Tokens of a sample.
        total_samples: Samples of the budget.
        step_samples: A smaller budget is offered in multiples of these.
        most_steps: So many multiples are offered at most; 0 offers no smaller budget.
        ramp_samples: Samples that are read before the first multiple.
        shares_are_written: Whether a share can be lowered in the file.
    """

    key: str
    sequence_length: int
    total_samples: int
    step_samples: int = 1
    most_steps: int = 0
    ramp_samples: int = 0
    shares_are_written: bool = True


def shortages(sources: Sequence[Supply], budget: Budget) -> Iterator[tuple[int, str]]:
    """The sources that would be repeated more often than they may.

    Yields:
        Index, and what the source needs, what it has, and up to three changes of which each makes it suffice.
    """
    length = budget.sequence_length
    has = [samples_in(source, source.max_epochs, length) for source in sources]
    short = [index for index, source in enumerate(sources) if source.samples > has[index]]
    no_shares = sum(has) < budget.total_samples
    for index in short:
        all_have = ""
        if no_shares and len(sources) > 1 and index == short[0]:
            all_have = f"  all      {len(sources)} sources may give {sum(has) * length:,} together: no shares suffice\n"
        yield index, f"{_message(sources[index], budget)}{all_have}  {_remedies(index, sources, has, budget)}"


def samples_in(source: Supply, epochs: float, length: int) -> int:
    """Samples that a source can give in some passes, behind what was read of it before."""
    return available_samples(
        source.tokens, epochs, length, tokens_before=source.tokens_before, label_tokens=source.label_tokens
    )


def _message(source: Supply, budget: Budget) -> str:
    needed = source.samples * budget.sequence_length
    product = tokens_in(source.tokens, source.max_epochs)
    before = source.tokens_before
    label = " + 1 for the last label" if source.label_tokens and before + needed == product else ""
    total = budget.total_samples * budget.sequence_length
    rows = f"{source.tokens // budget.sequence_length:,} rows of " if not source.label_tokens else ""
    rows += f"{budget.sequence_length:,} = " if rows else ""
    return (
        f'source "{source.source}" cannot supply its share.\n'
        f"  needed   {needed:,} processed tokens{label} ({float(100 * source.share):.1f} % of budget {total:,})\n"
        + (f"  read     {before:,} before, in earlier phases and stages\n" if before else "")
        + f"  has      {rows}{source.tokens:,} tokens x max_epochs {source.max_epochs:g} = {product:,}\n"
    )


def _remedies(index: int, sources: Sequence[Supply], has: list[int], budget: Budget) -> str:
    source, length = sources[index], budget.sequence_length
    wanted = source.tokens_before + source.samples * length
    passes = -(-(wanted + source.label_tokens) // source.tokens)
    remedies = [f"raise max_epochs to {passes:,}"]
    share = share_between(samples_in(source, source.min_epochs, length), has[index], budget.total_samples)
    can_shift = len(sources) > 1 and sum(has) >= budget.total_samples and budget.shares_are_written
    if can_shift and share is not None and share[1]:
        remedies.insert(0, f"lower the share to {written_share(share[1])} and raise others by as much")
    samples = _most_samples(sources, has, budget)
    if samples:
        remedies.insert(0, f"lower {budget.key} to {samples * length:,}")
    return one_of(remedies)


def one_of(remedies: Sequence[str]) -> str:
    """Changes of which each suffices, as a sentence.

    >>> one_of(["lower this", "raise that"])
    'Lower this, or raise that.'
    """
    text = ", or ".join(filter(None, [", ".join(remedies[:-1]), remedies[-1]]))
    return f"{text[0].upper()}{text[1:]}."


def share_between(fewest: int, most: int, total: int) -> tuple[Fraction, Fraction] | None:
    """The smallest and the largest short share of a budget that gives so many samples.

    Args:
        fewest: Samples that it must give.
        most: Samples that it may give.
        total: Samples of the budget.

    Returns:
        Both with the same four, six or eight digits, less than a hundredth of a sample from what rounds to it;
        None where there is none.

    >>> share_between(0, 6, 40), share_between(2, 1, 7)
    ((Fraction(0, 1), Fraction(3, 20)), None)
    """
    if fewest > most:
        return None
    for unit in (10_000, 1_000_000, 100_000_000):
        low, high = -(-unit * fewest // total), unit * most // total
        if low <= high or 100 * total <= unit:
            return Fraction(low, unit), Fraction(high, unit)
    return None


def written_share(share: Fraction) -> str:
    """A share with at least four digits: `0.1500`, `0.42857143`."""
    text = f"{float(share):.8f}".rstrip("0")
    return text.ljust(6, "0")


def _most_samples(sources: Sequence[Supply], has: list[int], budget: Budget) -> int:
    """Samples of the largest budget that all sources can supply, and are read enough in, with these shares; or 0."""
    shares = [exact(source.share) for source in sources]
    wanted = [samples_in(source, source.min_epochs, budget.sequence_length) for source in sources]
    ramp, rows = budget.ramp_samples, budget.step_samples
    limits = (math.ceil(((can + 1) / share - ramp) / rows) for can, share in zip(has, shares, strict=True))
    floors = (math.floor(((want - 1) / share - ramp) / rows) for want, share in zip(wanted, shares, strict=True))
    # A quota of almost one sample more may be rounded down; more than was asked is no remedy.
    for steps in range(min(budget.most_steps, *limits), max(0, *(floor - 1 for floor in floors)), -1):
        needed = split_samples(shares, ramp + steps * rows)
        if all(want <= needs <= can for want, needs, can in zip(wanted, needed, has, strict=True)):
            return ramp + steps * rows
    return 0


@dataclass(frozen=True)
class Source:
    """One corpus, counted or declared.

    Attributes:
        name: Its name.
        tokens: Processed tokens of one pass.
        label_tokens: Tokens that its last sample reads beyond its length: 1, or 0 of packed rows.
    """

    name: str
    tokens: int
    label_tokens: int = 1


@dataclass(frozen=True)
class Entry:
    """What a blend takes of a source or of another blend.

    Attributes:
        of: That source or blend.
        place: `file:line: key`, where errors point.
        share: Of what is left after tokens and epochs; for weighting fixed, as are the next two.
        tokens: Processed tokens.
        epochs: Passes, all whole samples of them.
        max_epochs: Passes over each source below that may be read at most.
        min_epochs: And that must be read at least.
    """

    of: Source | Blend
    place: str
    share: float | None = None
    tokens: int | None = None
    epochs: float | None = None
    max_epochs: float | None = None
    min_epochs: float = 0.0


@dataclass(frozen=True)
class Blend:
    """Entries and their weighting; see `data_tools.schema` for what each weighting means."""

    name: str
    entries: tuple[Entry, ...]
    weighting: Literal["fixed", "natural", "equal", "temperature"] = "fixed"
    temperature: float | None = None


@dataclass(frozen=True)
class Allotment:
    """What one source gives to a budget.

    Attributes:
        source: Its name.
        tokens: Tokens that it has.
        share: Its exact share of the budget.
        samples: Whole samples; they sum to the budget's.
        max_epochs: Passes over it that may be read.
        places: The entries that led to it.
        tokens_before: Tokens of it that were read before this budget.
        label_tokens: Tokens that its last sample reads beyond its length.
        min_epochs: Passes over it that must be read.
    """

    source: str
    tokens: int
    share: Fraction
    samples: int
    max_epochs: float
    places: tuple[str, ...]
    tokens_before: int = 0
    label_tokens: int = 1
    min_epochs: float = 0.0


def allot(blend: Blend, *, total_samples: int, sequence_length: int, notes: list[str]) -> tuple[Allotment, ...]:
    """Whole samples of every source of a blend; whether it has them is not looked at.

    Args:
        blend: What is mixed.
        total_samples: What all sources together give.
        sequence_length: Tokens of a sample.
        notes: Takes a sentence for everything that is rounded or joined.

    Raises:
        RecipeError: Amounts that do not fit the budget.
    """
    found: dict[str, list[_Quota]] = {}
    for quota in _quotas(blend, Fraction(total_samples), sequence_length, None, notes):
        found.setdefault(quota.source.name, []).append(quota)
    notes += [f"source {name} is reached {len(ways)} times: shares summed." for name, ways in found.items() if ways[1:]]
    sums = [sum((way.samples for way in ways), Fraction(0)) for ways in found.values()]
    return tuple(
        Allotment(
            source=name,
            tokens=ways[0].source.tokens,
            share=whole / total_samples,
            samples=samples,
            max_epochs=min(way.max_epochs for way in ways),
            places=tuple(dict.fromkeys(way.place for way in ways)),
            label_tokens=ways[0].source.label_tokens,
            min_epochs=max(way.min_epochs for way in ways),
        )
        for (name, ways), whole, samples in zip(found.items(), sums, split_samples(sums, total_samples), strict=True)
    )


@dataclass(frozen=True)
class _Quota:
    """Exact samples of one source on one way through the blends."""

    source: Source
    samples: Fraction
    max_epochs: float
    min_epochs: float
    place: str


def written_total(blend: Blend, length: int) -> int:
    """Samples of a blend of which every entry says its tokens or epochs.

    Raises:
        RecipeError: An entry that does not.
    """
    if any(entry.tokens is None and entry.epochs is None for entry in blend.entries):
        raise RecipeError(f"blend {blend.name}: its entries do not say how much is read; give --tokens N")
    return sum(_written_samples(entry, length, []) for entry in blend.entries)


def _quotas(
    blend: Blend, samples: Fraction, length: int, cap: float | None, notes: list[str], floor: float = 0.0
) -> Iterator[_Quota]:
    for entry, quota in zip(blend.entries, _entry_quotas(blend, samples, length, notes), strict=True):
        limits = [limit for limit in (cap, entry.max_epochs or entry.epochs) if limit is not None]
        strictest = min(limits, default=None)
        if isinstance(entry.of, Blend):
            yield from _quotas(entry.of, quota, length, strictest, notes, max(floor, entry.min_epochs))
        else:
            yield _Quota(entry.of, quota, strictest or 1.0, max(floor, entry.min_epochs), entry.place)


def _entry_quotas(blend: Blend, samples: Fraction, length: int, notes: list[str]) -> list[Fraction]:
    if blend.weighting != "fixed":
        weights = [_weight(blend, _size(entry.of)) for entry in blend.entries]
        return [samples * weight / sum(weights) for weight in weights]
    written = [_written_samples(entry, length, notes) if entry.share is None else 0 for entry in blend.entries]
    rest = samples - sum(written)
    shares = [exact(entry.share) if entry.share is not None else Fraction(0) for entry in blend.entries]
    if rest < 0 or (rest and not any(shares)) or (not rest and any(shares)):
        raise RecipeError(
            f"{blend.entries[0].place}: the tokens and epochs of blend {blend.name} take {sum(written) * length:,} of "
            f"its {float(samples * length):,.0f} tokens; "
            + ("nothing is left for its shares" if any(shares) else "give one entry a share, or change the budget")
        )
    return [
        Fraction(count) if not share else rest * share / sum(shares)
        for count, share in zip(written, shares, strict=True)
    ]


def _written_samples(entry: Entry, length: int, notes: list[str]) -> int:
    """Whole samples of an entry that says its tokens or epochs."""
    if entry.epochs is not None:
        if isinstance(entry.of, Blend):
            raise RecipeError(f"{entry.place}: {entry.of.name} is a blend; epochs count passes over one source")
        return available_samples(entry.of.tokens, entry.epochs, length, label_tokens=entry.of.label_tokens)
    assert entry.tokens is not None, "an entry without a share says its tokens or epochs"
    samples = nearest_multiple(entry.tokens, length)
    if samples * length != entry.tokens:
        notes.append(
            f"{entry.place}: {entry.tokens:,} tokens are {entry.tokens / length:,.2f} samples of {length:,}: "
            f"rounded to {samples:,} samples, {samples * length:,} tokens."
        )
    return samples


def _size(of: Source | Blend) -> int:
    return of.tokens if isinstance(of, Source) else sum(_size(entry.of) for entry in of.entries)


def _weight(blend: Blend, size: int) -> Fraction:
    if blend.weighting == "equal":
        return Fraction(1)
    if blend.weighting == "natural":
        return Fraction(size)
    assert blend.temperature is not None, "the schema joins weighting temperature and the key"
    return Fraction(_PRECISE.power(Decimal(size), _PRECISE.divide(1, Decimal(repr(blend.temperature)))))
