"""The frozen schema of source and blend files: YAML that recipes and the blend planner both read.

A source file describes one corpus. A blend file mixes sources, and blends of sources: `entries` that
each name a file, and the weighting that says how much each gives.

| weighting   | what an entry gives |
|-------------|---------------------|
| fixed       | the one of share, tokens, epochs that it writes; shares divide what tokens and epochs leave |
| natural     | in proportion to its tokens: a plain union |
| equal       | as much as every other entry |
| temperature | in proportion to tokens ** (1 / temperature): 1 is natural, more is flatter |

The tokens of a nested blend are those of all sources below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from data_tools.quantities import parse_count, parse_number

Count = Annotated[int, BeforeValidator(parse_count)]
"""A whole number of things in a human form: `20B`, `1.5M`, `8_192`, `1e9`."""

Number = Annotated[float, BeforeValidator(parse_number)]
"""A real number; closes PyYAML's trap that `1e-4` is read as a string."""

SHARE_TOLERANCE = 1e-9

NAME = "^[A-Za-z0-9_-]+$"


class Section(BaseModel):
    """A frozen section of a file that refuses unknown keys and silent conversions."""

    # Defaults are validated too: an unset max_epochs must hash like a written 1, as the float 1.0.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class DomainShares(Section):
    """What a source that mixes domains is about; nothing written means all of it is `domain`."""

    code: Number = Field(default=0, ge=0, le=1, description="Share of code.")
    general: Number = Field(default=0, ge=0, le=1, description="Share of everything else.")
    math: Number = Field(default=0, ge=0, le=1, description="Share of mathematics.")
    science: Number = Field(default=0, ge=0, le=1, description="Share of science.")

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        total = math.fsum(self.model_dump().values())
        if total and abs(total - 1) > SHARE_TOLERANCE:
            raise ValueError(f"the shares sum to {total:.10g}, must sum to 1; write the share of every domain")
        return self


class SourceRecipe(Section):
    """One corpus with one manifest."""

    source: str = Field(pattern=NAME, description="Name of the source, for people: letters, digits, '_' and '-'.")
    prefix: str = Field(description="PREFIX of PREFIX.bin/.idx/.manifest.json, relative to the site's data_root.")
    validation_prefix: str = Field(description="The same for the held-out documents.")
    domain: Literal["code", "general", "math", "science"] = Field(default="general", description="What it is about.")
    domain_shares: DomainShares = DomainShares()
    build: str = Field(default="", description="Command that makes the dataset, printed when it is missing.")
    declared_tokens: Count | None = Field(
        default=None, gt=0, description="Tokens that the source is said to have; plans use it until the data is built."
    )
    declared_documents: Count | None = Field(
        default=None, gt=0, description="Conversations or texts that it is said to have; sft plans use both until then."
    )
    adapter: str = Field(default="", description="Adapter of the raw rows, one a data set (`tokenize --adapter`).")
    available_at: str = Field(default="", description="Where the raw data is had, and what part of it this is.")
    revision: str = Field(default="", description="Revision of the raw data that is meant, one a data set.")
    licence: str = Field(default="", description="Terms of the raw data.")

    def domains(self) -> dict[str, float]:
        """The share of each domain that it has; they sum to 1."""
        shares = {name: share for name, share in self.domain_shares.model_dump().items() if share}
        return shares or {self.domain: 1.0}


def refuse_floor_above(min_epochs: float, most: float | None) -> None:
    """Refuses passes that must be read and may not.

    Raises:
        ValueError: `min_epochs` is above what is permitted here; None permits what other files say.
    """
    if most is not None and min_epochs > most:
        raise ValueError(f"min_epochs {min_epochs:g} is above the {most:g} that may be read; raise that, or lower it")


class BlendFileEntry(Section):
    """One source, or one blend of sources, inside a blend."""

    source: str = Field(description="Path of a source or blend file, relative to this file.")
    share: Number | None = Field(default=None, gt=0, le=1, description="Share of what is left after tokens and epochs.")
    tokens: Count | None = Field(default=None, gt=0, description="Processed tokens, rounded to whole samples.")
    epochs: Number | None = Field(default=None, gt=0, description="Passes over the source: all their whole samples.")
    max_epochs: Number | None = Field(
        default=None,
        gt=0,
        description="Passes over each source below that may be read at most; the smallest on the way down counts, "
        "1 where none is written.",
    )
    min_epochs: Number = Field(
        default=0,
        ge=0,
        description="Passes over each source below that must be read at least; the largest on the way down counts.",
    )

    @property
    def amounts(self) -> list[str]:
        """Which of share, tokens and epochs are written."""
        return [key for key in ("share", "tokens", "epochs") if getattr(self, key) is not None]

    @model_validator(mode="after")
    def _check_amounts(self) -> Self:
        if len(self.amounts) > 1:
            raise ValueError(f"{' and '.join(self.amounts)} are both written; keep one of them")
        if self.epochs is not None and self.max_epochs is not None and self.epochs > self.max_epochs:
            raise ValueError(f"epochs {self.epochs:g} is above max_epochs {self.max_epochs:g}; raise that, or lower it")
        refuse_floor_above(self.min_epochs, self.max_epochs or self.epochs)
        return self


def wrong_sum(shares: Sequence[float]) -> str | None:
    """What is wrong with shares that do not sum to 1.

    >>> wrong_sum([0.5, 0.4])
    'shares 0.5 + 0.4 sum to 0.9, must sum to 1; raise them by 0.1 in all'
    """
    total = math.fsum(shares)
    if abs(total - 1) <= SHARE_TOLERANCE:
        return None
    written = " + ".join(f"{share:g}" for share in shares)
    change = f"{'raise' if total < 1 else 'lower'} them by {abs(1 - total):.9g} in all"
    return f"shares {written} sum to {total:.10g}, must sum to 1; {change}"


class BlendRecipe(Section):
    """Sources, and how much each gives."""

    blend: str = Field(pattern=NAME, description="Name of the blend, for people: letters, digits, '_' and '-'.")
    weighting: Literal["fixed", "natural", "equal", "temperature"] = Field(
        default="fixed", description="What an entry gives: as written, by size, all the same, or by flattened size."
    )
    temperature: Number | None = Field(default=None, gt=0, description="temperature only: 1 is natural, more flatter.")
    entries: tuple[BlendFileEntry, ...] = Field(description="Sources and blends, in order.")

    @field_validator("entries")
    @classmethod
    def _check_shares(cls, entries: tuple[BlendFileEntry, ...], info: ValidationInfo) -> tuple[BlendFileEntry, ...]:
        shares = [entry.share for entry in entries if entry.share is not None]
        is_fixed = info.data.get("weighting") == "fixed" and all(entry.amounts for entry in entries)
        if is_fixed and shares and (message := wrong_sum(shares)):
            raise ValueError(message)
        return entries

    @model_validator(mode="after")
    def _check_weighting(self) -> Self:
        if (self.weighting == "temperature") != (self.temperature is not None):
            raise ValueError(f"temperature is {self.temperature} and weighting {self.weighting}; write both or neither")
        if self.weighting != "fixed":
            if any(entry.amounts for entry in self.entries):
                raise ValueError(f"weighting {self.weighting} decides the amounts; remove share, tokens and epochs")
            return self
        if missing := [index for index, entry in enumerate(self.entries) if not entry.amounts]:
            raise ValueError(f"entries[{missing[0]}] has none of share, tokens, epochs; write one, or a weighting")
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if not self.entries:
            raise ValueError("entries is empty; write at least one source")
        paths = [entry.source for entry in self.entries]
        if twice := {path for path in paths if paths.count(path) > 1}:
            raise ValueError(f"{min(twice)} stands in two entries; give one entry both amounts")
        return self
