"""OpenAI's form: `messages`, a list of {role, content}, with `tool_calls` and `tools` where tools are used.

| field of a message | read as |
|--------------------|---------|
| role               | system, user, assistant, tool; `developer` is the system |
| content            | a string; null or empty only beside tool calls; an empty system turn is left out |
| reasoning_content, reasoning, thinking | a trace: `<think>…</think>` before the content |
| tool_calls         | {function: {name, arguments}} or {name, arguments}; arguments may be JSON in a string |

Other fields of a message (name, tool_call_id, …) are not read. `tools`, a list or the JSON text of one,
is kept as compact JSON.

Source: OpenAI's chat completions reference for the first three roles and `tool_calls`; the three names
of a trace are those that DeepSeek, vLLM and Hugging Face write.
"""

from __future__ import annotations

from typing import Any

import orjson

from data_tools.adapters.adapter import Adapter
from data_tools.adapters.fields import ID_KEYS, conversation_of, field_of, kind_of
from data_tools.readers import BadRecord, Columns, Record
from data_tools.records import Conversation, Domain, Role, Turn

KEY = "messages"
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_TRACES = ("reasoning_content", "reasoning", "thinking")


def messages_of(value: object, key: str) -> tuple[Turn, ...]:
    """The turns of a list of {role, content}.

    Args:
        value: What stands under `key`.
        key: For messages of errors.

    Raises:
        BadRecord: If it is no list, or a turn has another form, an unknown role or nothing to say.
    """
    if not isinstance(value, list):
        raise BadRecord("bad conversation", f'"{key}" is {kind_of(value)}, not a list of messages')
    turns = [turn for number, message in enumerate(value, start=1) if (turn := _turn(number, message))]
    if not turns:
        raise BadRecord("empty", f'the list under "{key}" says nothing')
    return tuple(turns)


def _turn(number: int, message: object) -> Turn | None:
    if not isinstance(message, dict):
        raise BadRecord("bad conversation", f"turn {number} is {kind_of(message)}, not of the form {{role, content}}")
    spelled, content = message.get("role"), message.get("content") or ""
    role = ROLES.get(spelled) if isinstance(spelled, str) else None
    if role is None:
        raise BadRecord("bad conversation", f"turn {number} is of role {spelled!r}, none of {', '.join(sorted(ROLES))}")
    if not isinstance(content, str):
        raise BadRecord("not a string", f"turn {number}: content is {kind_of(content)}, not a string")
    if content and len(message) == 2:
        return Turn(role, content)
    calls = _calls(number, message.get("tool_calls"))
    content = _trace(number, message) + content
    if not content and not calls:
        if role == "system":
            return None
        raise BadRecord("empty", f"turn {number} is empty")
    return Turn(role, content, calls)


def _trace(number: int, message: dict[str, Any]) -> str:
    traces = [message[name] for name in _TRACES if message.get(name)]
    if not traces:
        return ""
    if len(traces) > 1 or not isinstance(traces[0], str):
        raise BadRecord("bad conversation", f"turn {number} has several traces, or one that is no string")
    return f"<think>\n{traces[0]}\n</think>\n\n"


def _calls(number: int, calls: object) -> str | None:
    """The calls as compact JSON, a list of {name, arguments}."""
    if not calls:
        return None
    if not isinstance(calls, list):
        raise BadRecord("bad conversation", f"turn {number}: tool_calls is {kind_of(calls)}, not a list")
    return orjson.dumps([_call(number, call) for call in calls]).decode()


def _call(number: int, call: object) -> dict[str, object]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRecord("bad conversation", f"turn {number}: a tool call has no function with a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            parsed = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            parsed = None  # a model's slip: kept as it was written
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {"name": function["name"], "arguments": arguments}


def tools_of(record: Record) -> str | None:
    """The definitions of tools as compact JSON, None where there are none.

    Raises:
        BadRecord: If `tools` is neither a list nor the JSON text of one.
    """
    tools = record.get("tools")
    if not tools:
        return None
    try:
        parsed = orjson.loads(tools) if isinstance(tools, str) else tools
    except orjson.JSONDecodeError as error:
        raise BadRecord("malformed", f'"tools" is no JSON: {error}') from None
    if not isinstance(parsed, list):
        raise BadRecord("bad conversation", f'"tools" is {kind_of(parsed)}, not a list')
    return orjson.dumps(parsed).decode() if parsed else None


def _convert(record: Record, domain: Domain) -> Conversation:
    return conversation_of(record, messages_of(field_of(record, KEY), KEY), domain, tools_of(record))


ADAPTER = Adapter(
    name="messages",
    data_set="any in OpenAI's form",
    columns=Columns(required=((KEY,),), optional=(*ID_KEYS, "tools")),
    yields="Conversation",
    trust="the form is documented; content in parts (images) is refused",
    convert=_convert,
)
