"""What is wrong with a recipe: collected with the place of each problem, raised together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from data_tools.errors import DataError, RecipeError, UserError
from data_tools.strict_yaml import KeyPath, nearest
from megatron_ext.recipe.keys import key_name


@dataclass(frozen=True, order=True)
class Origin:
    """Where a value was written.

    Attributes:
        file: A file, or the command line option as typed.
        line: 1-based line of the file; 0 for an option.
        is_over: Whether it changes what a recipe says: an option, or `set` of an arm or a study.
    """

    file: str
    line: int = 0
    is_over: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


def origin_of(path: KeyPath, origins: Mapping[KeyPath, Origin]) -> Origin:
    """The place of a key, or of the nearest key around it."""
    while path not in origins:
        path = path[:-1]
    return origins[path]


def instead_of(name: str, known: Iterable[str]) -> str:
    """What a name probably means, and all that there are.

    >>> instead_of("mor", ["plain", "more"])
    'did you mean more? there are: plain, more'
    """
    there = list(known)
    near = nearest(name, there)
    return f"{f'did you mean {near}? ' if near is not None else ''}there are: {', '.join(there)}"


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that the user can mend."""

    origin: Origin
    key: str
    message: str  # value, rule and remedy; may have several lines

    def __str__(self) -> str:
        return f"{self.origin}: {self.key}: {self.message}" if self.key else f"{self.origin}: {self.message}"


@dataclass
class Problems:
    """Collects problems, so that a user sees all of them in one run."""

    found: list[Problem] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def add(self, origin: Origin, key: KeyPath, message: str) -> None:
        """Notes one problem.

        Args:
            origin: Where the value stands.
            key: The key that is to change.
            message: Value, rule and remedy.
        """
        self.found.append(Problem(origin, key_name(key), message))

    def add_text(self, text: str) -> None:
        """Notes what another reader has already put into words."""
        self.texts.append(text)

    def raise_recipe_error(self) -> None:
        """Raises what was found.

        Raises:
            RecipeError: There is at least one problem; sorted by file and line.
        """
        self._raise(RecipeError)

    def raise_data_error(self) -> None:
        """Raises what was found as the data's fault.

        Raises:
            DataError: There is at least one problem; sorted by file and line.
        """
        self._raise(DataError)

    def _raise(self, kind: type[UserError]) -> None:
        lines = [str(problem) for problem in sorted(set(self.found))] + self.texts
        if not lines:
            return
        head = [f"{len(lines)} problems"] if len(lines) > 1 else []
        raise kind("\n".join(head + lines))
