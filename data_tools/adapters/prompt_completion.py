"""`prompt` and `completion`: strings, or lists of {role, content} as TRL also takes them.

Strings become one turn of the user's and one of the assistant's; the completion is the answer.
"""

from __future__ import annotations

from data_tools.adapters.adapter import Adapter
from data_tools.adapters.fields import ID_KEYS, conversation_of, field_of, text_of
from data_tools.adapters.messages import messages_of, tools_of
from data_tools.readers import Columns, Record
from data_tools.records import Conversation, Domain, Role, Turn


def _turns(record: Record, key: str, role: Role) -> tuple[Turn, ...]:
    value = field_of(record, key)
    return messages_of(value, key) if isinstance(value, list) else (Turn(role, text_of(record, key)),)


def _convert(record: Record, domain: Domain) -> Conversation:
    turns = _turns(record, "prompt", "user") + _turns(record, "completion", "assistant")
    return conversation_of(record, turns, domain, tools_of(record))


ADAPTER = Adapter(
    name="prompt-completion",
    data_set="any in TRL's form",
    columns=Columns(required=(("prompt",), ("completion",)), optional=(*ID_KEYS, "tools")),
    yields="Conversation",
    trust="the form is documented by TRL",
    convert=_convert,
)
