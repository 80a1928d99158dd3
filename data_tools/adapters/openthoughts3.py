"""open-thoughts/OpenThoughts3-1.2M: `conversations` of {from, value}, with `domain` and `source`.

Confirmed on two derived copies: the columns difficulty (int64), source, domain, conversations. Not
confirmed on the set itself: the speakers' names (`human`, `gpt`), the words in `domain` (code, math,
science) and that traces stand inside `<think>…</think>`. Rows have no id, so theirs is of their content.
"""

from __future__ import annotations

from data_tools.adapters.adapter import Adapter
from data_tools.adapters.fields import ID_KEYS, conversation_of, domain_in, field_of
from data_tools.adapters.sharegpt import KEY, turns_of
from data_tools.readers import Columns, Record
from data_tools.records import Conversation, Domain

DOMAINS: dict[str, Domain] = {"code": "code", "math": "math", "science": "science"}


def _convert(record: Record, domain: Domain) -> Conversation:
    turns = turns_of(field_of(record, KEY), KEY)
    return conversation_of(record, turns, domain_in(record, "domain", DOMAINS, domain))


ADAPTER = Adapter(
    name="openthoughts3",
    data_set="open-thoughts/OpenThoughts3-1.2M",
    columns=Columns(required=((KEY,),), optional=("domain", *ID_KEYS)),
    yields="Conversation",
    trust="columns confirmed on two derived copies; speakers, words in `domain` and `<think>` are not",
    convert=_convert,
)
