"""Plain text under a key of choice; the default.

A list under the key is a conversation of {from, value} and is read as its text (`as_document`), and so
is `conversations` where the default key is absent: such rows pretrain as they stand.
"""

from __future__ import annotations

from data_tools.adapters.adapter import Adapter
from data_tools.adapters.fields import ID_KEYS, content_of, field_of, id_of, text_of
from data_tools.adapters.sharegpt import KEY as TURNS_KEY
from data_tools.adapters.sharegpt import turns_of
from data_tools.readers import Columns, Record
from data_tools.records import Conversation, Document, Domain, as_document

DEFAULT_KEY = "text"


def text_adapter(key: str = DEFAULT_KEY) -> Adapter:
    """The adapter for text under `key`."""

    def convert(record: Record, domain: Domain) -> Document:
        value = record.get(key)
        if value and isinstance(value, str):  # nearly every record of nearly every corpus
            return Document(id_of(record, value), value, domain)
        if key not in record and key == DEFAULT_KEY and TURNS_KEY in record:
            return _said(record, TURNS_KEY, domain)
        if isinstance(field_of(record, key), list):
            return _said(record, key, domain)
        return Document(id_of(record, ""), text_of(record, key), domain)

    return Adapter(
        name="text",
        data_set="any with text under one key (`--key`)",
        columns=Columns(
            required=((key, TURNS_KEY) if key == DEFAULT_KEY else (key,),),
            optional=ID_KEYS,
        ),
        yields="Document",
        trust="the key is yours",
        convert=convert,
    )


def _said(record: Record, key: str, domain: Domain) -> Document:
    turns = turns_of(record[key], key)
    return as_document(Conversation(id_of(record, content_of(turns)), turns, domain))


ADAPTER = text_adapter()
