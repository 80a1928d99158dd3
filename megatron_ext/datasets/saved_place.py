"""Whether a saved place of a source can be taken up: what its three numbers count, and whether they name a place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_tools.errors import DataError


def require_same(source: str, mine: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuses a place that counts other samples.

    Args:
        source: Name of the source.
        mine: What the cursor's numbers are counted in.
        state: What was saved, of the same names.

    Raises:
        DataError: They differ.
    """
    for name, value in mine.items():
        if state.get(name) != value:
            raise DataError(
                f'data position of source "{source}": {name}: the checkpoint has {state.get(name)!r}, this run '
                f"{value!r}; its place cannot be taken up. Resume with the recipe and data of the checkpoint."
            )


def are_counts(*numbers: Any) -> bool:
    """Whether all are whole numbers from 0 on, as JSON gives them."""
    return all(type(number) is int and number >= 0 for number in numbers)


def no_place_error(source: str, epoch: Any, window: Any, position: Any) -> DataError:
    """The error of numbers that name no place in a source."""
    return DataError(
        f'data position of source "{source}": epoch {epoch!r}, window {window!r}, position {position!r} is no place in '
        "it; the checkpoint is damaged. Resume from an earlier one."
    )
