"""ShareGPT: `conversations`, a list of {from, value}.

Speakers: `human` and `user`, `gpt` and `assistant`, `system`. Others, `tool` and `function_call` among
them, are refused: their forms differ from set to set.
"""

from __future__ import annotations

from data_tools.adapters.adapter import Adapter
from data_tools.adapters.fields import ID_KEYS, conversation_of, field_of, kind_of
from data_tools.readers import BadRecord, Columns, Record
from data_tools.records import Conversation, Domain, Role, Turn

KEY = "conversations"
SPEAKERS: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def turns_of(value: object, key: str) -> tuple[Turn, ...]:
    """The turns of a list of {from, value}.

    Args:
        value: What stands under `key`.
        key: For messages.

    Raises:
        BadRecord: If it is no list, empty, or a turn has another form, an unknown speaker or no text.
    """
    if not isinstance(value, list):
        raise BadRecord("bad conversation", f'"{key}" is {kind_of(value)}, not a list of turns')
    if not value:
        raise BadRecord("empty", f'the list under "{key}" is empty')
    return tuple(_turn(number, turn) for number, turn in enumerate(value, start=1))


def _turn(number: int, turn: object) -> Turn:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise BadRecord("bad conversation", f"turn {number} is not of the form {{from, value}}")
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise BadRecord("bad conversation", f"turn {number} is from {speaker!r}, none of {', '.join(sorted(SPEAKERS))}")
    if not turn["value"]:
        raise BadRecord("empty", f"turn {number} is empty")
    return Turn(SPEAKERS[speaker], turn["value"])


def _convert(record: Record, domain: Domain) -> Conversation:
    return conversation_of(record, turns_of(field_of(record, KEY), KEY), domain)


ADAPTER = Adapter(
    name="sharegpt",
    data_set="any in ShareGPT's form",
    columns=Columns(required=((KEY,),), optional=ID_KEYS),
    yields="Conversation",
    trust="a convention, not a standard: other speakers than human, user, gpt, assistant, system are refused",
    convert=_convert,
)
