"""What an adapter is, and an adapter at work on one file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_tools.readers import Columns, Raw, Record, record_of
from data_tools.records import Conversation, Document, Domain

Item = Document | Conversation
Convert = Callable[[Record, Domain], Item]
"""Makes of a record, and of the domain of its file, what it says; raises BadRecord."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """How the records of one data set are read.

    Attributes:
        name: As in `--adapter`.
        data_set: Where the schema comes from.
        columns: What is read of a record.
        yields: What a record becomes, for people.
        trust: What is confirmed about the schema, and what is not.
        convert: Makes of a record what it says.
        domain: Of records that do not tell theirs.
        folders: The domain of such records by a part of their file's path; the first that fits counts.
    """

    name: str
    data_set: str
    columns: Columns
    yields: str
    trust: str
    convert: Convert
    domain: Domain = "general"
    folders: tuple[tuple[str, Domain], ...] = ()

    def domain_of(self, path: Path) -> Domain:
        """The domain of records of a file that do not tell theirs."""
        return next((domain for part, domain in self.folders if part in str(path)), self.domain)

    def for_file(self, path: Path, *, start: int = 0) -> FileAdapter:
        """The adapter at the start of a file, or, at the byte `start`, of a part of one."""
        return FileAdapter(self, path, is_checked=start > 0)


class FileAdapter:
    """An adapter at work on the records of one file: looks at the keys of the first, then converts all."""

    def __init__(self, adapter: Adapter, path: Path, *, is_checked: bool = False) -> None:
        """Starts with no record seen.

        Args:
            adapter: Reads the records.
            path: Their file, which may tell their domain.
            is_checked: Whether the first record is one like all others, as in the middle of a file.
        """
        self._adapter = adapter
        self._path = path
        self._domain = adapter.domain_of(path)
        self._is_checked = is_checked

    def __call__(self, raw: Raw) -> Item:
        """What a record says.

        Raises:
            BadRecord: If it says nothing, with the reason.
            DataError: If the first record of the file shows that it has another schema.
        """
        record = record_of(raw)
        if not self._is_checked:
            self._adapter.columns.check(record, place=f"{self._path}: adapter {self._adapter.name}: its first record")
            self._is_checked = True
        return self._adapter.convert(record, self._domain)
