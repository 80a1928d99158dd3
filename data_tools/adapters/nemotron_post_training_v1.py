"""nvidia/Nemotron-Post-Training-Dataset-v1: `messages` with `uuid` and `category`.

Columns: uuid, license, generator, version, category, reasoning, messages [{role, content, tool_calls}],
metadata. Not confirmed: the words in `category` (taken for the names of the splits: chat, code, math,
stem, tool_calling), and where tool_calling defines its tools: `metadata` is not read, so conversations
carry no tools. Others report rows whose question was withheld and stands as `-` or empty (code, chat);
they are refused.
"""

from __future__ import annotations

from data_tools.adapters.adapter import Adapter
from data_tools.adapters.fields import conversation_of, domain_in, field_of
from data_tools.adapters.messages import KEY, messages_of
from data_tools.readers import BadRecord, Columns, Record
from data_tools.records import Conversation, Domain

DOMAINS: dict[str, Domain] = {"code": "code", "math": "math", "stem": "science"}
COLUMNS = Columns(required=((KEY,),), optional=("uuid", "category"))


def convert(record: Record, domain: Domain) -> Conversation:
    """The conversation of a row of v1 or v2.

    Raises:
        BadRecord: If a turn cannot be read, or the question was withheld.
    """
    turns = messages_of(field_of(record, KEY), KEY)
    if any(turn.role == "user" and turn.content.strip() in ("", "-") for turn in turns):
        raise BadRecord("empty", "the question was withheld from this set; its source has it")
    return conversation_of(record, turns, domain_in(record, "category", DOMAINS, domain))


ADAPTER = Adapter(
    name="nemotron-post-training-v1",
    data_set="nvidia/Nemotron-Post-Training-Dataset-v1",
    columns=COLUMNS,
    yields="Conversation",
    trust="columns confirmed; words in `category` and where tools are defined are not",
    convert=convert,
)
