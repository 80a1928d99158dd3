"""Inputs through an adapter: what every record says, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_tools.adapters.adapter import Adapter
from data_tools.errors import DataError
from data_tools.inputs import find_inputs, open_part
from data_tools.parts import InputFile, Part, place_of
from data_tools.progress import NoProgress, Progress
from data_tools.readers import BadRecord
from data_tools.records import Conversation, Document, as_document


def texts(names: Sequence[str | Path], adapter: Adapter) -> Iterator[str]:
    """The text of every record of some inputs.

    Args:
        names: Files, folders, globs, `-`.
        adapter: Reads the records.

    Raises:
        DataError: If an input cannot be read, or at the first record without text, with `file:row`,
            reason and remedy.
    """
    for file in find_inputs(names).files:
        for _, document in documents_of(file, adapter, NoProgress()):
            yield document.text


def documents_of(
    file: InputFile, adapter: Adapter, progress: Progress, *, skips_bad: bool = False
) -> Iterator[tuple[int, Document]]:
    """The documents of one input with their rows, counted from 1.

    Args:
        file: The input.
        adapter: Reads the records.
        progress: Is told of every byte.
        skips_bad: Whether records without text are passed over: those of a dataset whose manifest counts them.

    Raises:
        DataError: As `texts`.
    """
    part, convert = Part(file), adapter.for_file(file.path)
    for block in open_part(part, adapter.columns).blocks():
        for row, raw in enumerate(block.records, start=block.first_row):
            try:
                item = convert(raw)
            except BadRecord as error:
                if skips_bad:
                    continue
                raise DataError(f"{place_of(part, row)}: {error}; mend or remove the line") from None
            yield row, as_document(item) if isinstance(item, Conversation) else item
        progress.advance(block.size)
