"""What every sample source is: a name, what it stands for, and a stream of rows."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from data_tools.errors import SetupError

Row = dict[str, Any]

MOST_TASKS = 20_000
"""Tasks asked of one family at most: some draw a plan of that length first, some refuse to give more."""


@dataclass
class Tally:
    """Counts that rows themselves do not show; written to the card.

    Attributes:
        left_out: Candidates that gave no row, by reason.
    """

    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class SampleSource:
    """One sample source.

    Attributes:
        name: File name without its end.
        stands_for: The data set whose place it takes.
        description: What it is.
        licence: Of the rows.
        schema: Keys of a row and what they hold.
        default_bytes: UTF-8 bytes of text at scale 1.
        rows: Makes rows without end, or until there are no more, from a seed; counts into the tally.
        text: The text of a row.
        family: The family of a row.
        versions: Software that decides the rows beside this package and Python.
    """

    name: str
    stands_for: str
    description: str
    licence: str
    schema: dict[str, str]
    default_bytes: int
    rows: Callable[[int, Tally], Iterator[Row]]
    text: Callable[[Row], str]
    family: Callable[[Row], str]
    versions: Callable[[], dict[str, str]]


def family_seed(seed: int, source: str, family: str) -> int:
    """A seed of its own for each family.

    reasoning-gym seeds item i with seed + i, so families that shared a seed would share their numbers.

    >>> family_seed(0, "ldq", "gcd") == family_seed(0, "ldq", "lcm")
    False
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{source}/{family}".encode()).digest()[:4], "big") >> 1


def content_id(source: str, family: str, content: str) -> str:
    """An id that is the same wherever the same content is made, so its split is too."""
    return f"{source}-{family}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def reasoning_gym() -> Any:
    """The library of procedural tasks; its import takes seconds.

    Raises:
        SetupError: If it is not installed.
    """
    reasoning_gym_versions()
    return importlib.import_module("reasoning_gym")


def reasoning_gym_versions() -> dict[str, str]:
    """Its version, for cards, without importing it.

    Raises:
        SetupError: If it is not installed.
    """
    try:
        return {"reasoning_gym": importlib.metadata.version("reasoning-gym")}
    except importlib.metadata.PackageNotFoundError:
        raise SetupError(
            "reasoning-gym is not installed, and the ldq and shq samples are made with it; "
            "install it with: pip install 'megatron-ext[samples]', or make only --only base"
        ) from None


def ask(library: Any, family: str, seed: int, options: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Tasks of a family, each with the data set that can score its answers; `MOST_TASKS` at most."""
    tasks = library.create_dataset(family, seed=seed, size=MOST_TASKS, **options)
    for index in range(MOST_TASKS):
        yield tasks, tasks[index]
