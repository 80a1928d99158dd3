"""What several sets of NVIDIA's share: a document under `text`, with an id where a column has one."""

from __future__ import annotations

from collections.abc import Sequence

from data_tools.adapters.adapter import Adapter
from data_tools.adapters.fields import ID_KEYS, id_of, text_of
from data_tools.readers import Columns, Record
from data_tools.records import Document, Domain


def plain_text(
    *, name: str, data_set: str, trust: str, domain: Domain = "general", folders: Sequence[tuple[str, Domain]] = ()
) -> Adapter:
    """An adapter for documents under `text`; the arguments are those of `Adapter`."""
    return Adapter(
        name=name,
        data_set=data_set,
        columns=Columns(required=(("text",),), optional=ID_KEYS),
        yields="Document",
        trust=trust,
        convert=_convert,
        domain=domain,
        folders=tuple(folders),
    )


def _convert(record: Record, domain: Domain) -> Document:
    text = text_of(record, "text")
    return Document(id_of(record, text), text, domain)
