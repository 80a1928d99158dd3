"""Fields of a record, each checked as it is taken."""

from __future__ import annotations

import hashlib

import orjson

from data_tools.readers import BadRecord, Record
from data_tools.records import Conversation, Domain, Turn

ID_KEYS = ("id", "uuid")
"""Keys under which a record may have an id of its own."""


def kind_of(value: object) -> str:
    """The type of a value as messages say it."""
    return "null" if value is None else type(value).__name__


def field_of(record: Record, key: str) -> object:
    """The value under a key.

    Raises:
        BadRecord: If there is none.
    """
    if key not in record:
        raise BadRecord("missing key", f'no key "{key}"; keys: {", ".join(sorted(record)) or "none"}')
    return record[key]


def text_of(record: Record, key: str) -> str:
    """The string under a key, not empty.

    Raises:
        BadRecord: If there is none.
    """
    value = field_of(record, key)
    if not isinstance(value, str):
        raise BadRecord("not a string", f'"{key}" is {kind_of(value)}, not a string')
    if not value:
        raise BadRecord("empty", f'the text under "{key}" is empty')
    return value


def id_of(record: Record, content: str | bytes, keys: tuple[str, ...] = ID_KEYS) -> str:
    """The record's own id, else 32 hex digits of the sha256 of its content: equal content, equal id.

    Args:
        record: Its first key of `keys` that holds a string (not empty) or a whole number is its id.
        content: What else tells it from others.
        keys: Where an id may stand.
    """
    for key in keys:
        value = record.get(key)
        if value and isinstance(value, str):
            return value
        if type(value) is int:
            return str(value)
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:32]


def conversation_of(record: Record, turns: tuple[Turn, ...], domain: Domain, tools: str | None = None) -> Conversation:
    """The conversation of some turns, with its id.

    Raises:
        BadRecord: If the assistant says nothing in it.
    """
    if "assistant" not in [turn.role for turn in turns]:
        said = f"none of its {len(turns)} turns is" if len(turns) > 1 else "its only turn is not"
        raise BadRecord("bad conversation", f"{said} the assistant's")
    return Conversation(id=id_of(record, content_of(turns)), turns=turns, domain=domain, tools=tools)


def content_of(turns: tuple[Turn, ...]) -> bytes:
    """What tells a conversation from others, whichever adapter reads it, so that its split is one."""
    return orjson.dumps([tuple(turn) for turn in turns])


def domain_in(record: Record, key: str, known: dict[str, Domain], default: Domain) -> Domain:
    """The domain that a word of the record's stands for; the default for other words and none."""
    value = record.get(key)
    return known.get(value.lower(), default) if isinstance(value, str) else default
