r"""What of a conversation is trained on, and what becomes of its thinking.

A trace of thinking stands at the start of what the assistant says, between `<think>` and `</think>`
(`records.Turn`). Training on `assistant` alone is training on the answers: all that the assistant says
after its thinking, with the token that ends its turn; turns that call tools are left out whole.
`thinking` adds the traces with their tags, `tools` the turns that call tools. What tools answer is
never trained on: no model says it.

Who speaks after whom is checked first: most templates take any order, and what they make of a wrong one
is a format that no chat has. `_MAY_FOLLOW` says what is right; the last turn may be anybody's.

| --thinking | the assistant's turns keep their traces |
|------------|------------------------------------------|
| keep       | all |
| strip      | none |
| last       | those after the last user's turn: what a model sees when its chat goes on |
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import orjson

from data_tools.chat_encode import Marked, Ranges
from data_tools.chat_template import Rendered
from data_tools.readers import BadRecord
from data_tools.records import Conversation, Thinking, Turn

_OPEN, _CLOSE = "<think>", "</think>"
_TRACE = re.compile(rf"\A\s*{_OPEN}.*?{_CLOSE}\s*", re.DOTALL)


_MAY_FOLLOW = {
    "": ("system", "user"),
    "system": ("system", "user"),
    "user": ("assistant",),
    "assistant": ("system", "tool", "user"),
    "tool": ("assistant", "tool"),
}
"""Speakers after each, and at the beginning: user and assistant alternate, tools answer the assistant, and the system
speaks before a user does."""


def refuse_disorder(conversation: Conversation) -> None:
    """Refuses turns out of order.

    Raises:
        BadRecord: With the first such turn.
    """
    if found := _disorder(tuple(turn.role for turn in conversation.turns)):
        raise BadRecord("roles out of order", found)


@functools.lru_cache(maxsize=1_000)  # some shapes make up nearly all of a data set
def _disorder(roles: tuple[str, ...]) -> str | None:
    for number, (before, role) in enumerate(zip(("", *roles), roles, strict=False), start=1):
        if role not in (may_follow := _MAY_FOLLOW[before]):
            place = f"after one of {before}" if before else "at the beginning"
            return f"turn {number} is of {role}, {place}, where {' or '.join(may_follow)} may speak"
    return None


def messages_of(conversation: Conversation, *, thinking: Thinking) -> list[dict[str, Any]]:
    r"""A conversation as chat templates take it.

    >>> turns = (Turn("user", "1 + 1?"), Turn("assistant", "<think>Easy.</think>\n\n2"))
    >>> messages_of(Conversation("a", turns), thinking="strip")
    [{'role': 'user', 'content': '1 + 1?'}, {'role': 'assistant', 'content': '2'}]
    """
    contents = contents_of(conversation, thinking=thinking)
    return [_message(turn, content) for turn, content in zip(conversation.turns, contents, strict=True)]


def contents_of(conversation: Conversation, *, thinking: Thinking) -> Sequence[str]:
    """[turns] what is said, with the traces that stay."""
    _, contents, _ = zip(*conversation.turns, strict=True)
    if thinking == "keep" or not any(_CLOSE in content for content in contents):
        return contents
    turns = conversation.turns
    last_user = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=-1)
    keeps = range(last_user + 1, len(turns)) if thinking == "last" else range(0)
    return [
        _TRACE.sub("", turn.content) if turn.role == "assistant" and number not in keeps else turn.content
        for number, turn in enumerate(turns)
    ]


def _message(turn: Turn, content: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": content}
    if turn.tool_calls:
        calls = orjson.loads(turn.tool_calls)
        message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return message


def tools_of(conversation: Conversation) -> list[Any] | None:
    """The definitions of its tools, as chat templates take them."""
    return orjson.loads(conversation.tools) if conversation.tools else None


def marked(
    rendered: Rendered, conversation: Conversation, *, train_on: frozenset[str], is_protected: bool = False
) -> Marked:
    """What of a rendered conversation is trained on.

    Args:
        rendered: The conversation.
        conversation: Where it comes from.
        train_on: Some of `TRAINABLE`.
        is_protected: Whether it was rendered protected.

    Raises:
        BadRecord: If nothing is, or turns that call tools cannot be told from others.
    """
    turns: list[Turn] = []
    if "tools" not in train_on:
        turns = [turn for turn in conversation.turns if turn.role == "assistant"]
    skips_tools = any(turn.tool_calls for turn in turns)
    if skips_tools and len(turns) != len(rendered.spans):
        raise BadRecord("template", f"the chat template marks {len(rendered.spans)} of {len(turns)} assistant turns")
    trained: Ranges = []
    thinking: Ranges = []
    if not skips_tools and _CLOSE not in rendered.text:
        trained = rendered.spans
    else:
        for number, (start, stop) in enumerate(rendered.spans):
            answer_start, trace = _trace(rendered.text, start, stop)
            thinking += [trace] if trace else []
            if not (skips_tools and turns[number].tool_calls):
                trained.append((start if "thinking" in train_on else answer_start, stop))
    if not any(start < stop for start, stop in trained):
        raise BadRecord("nothing trained", f"no turn has anything of {', '.join(sorted(train_on))}")
    return Marked(rendered.text, trained, thinking, rendered.spans[-1], is_protected)


def _trace(text: str, start: int, stop: int) -> tuple[int, tuple[int, int] | None]:
    """Where the answer starts, and what is thought; a template may have opened the tag before `start`.

    White space before the closing tag is its form, not thinking: a trace whose tail is trimmed still ends with it.
    """
    close = text.find(_CLOSE, start, stop)
    if close < 0:
        return start, None
    opened = text.find(_OPEN, start, close)
    before = text[max(0, start - 64) : start] if opened < 0 else text[start:opened]
    if (opened < 0 and not before.rstrip().endswith(_OPEN)) or (opened >= 0 and before.strip()):
        return start, None
    begin = opened + len(_OPEN) if opened >= 0 else start
    return close + len(_CLOSE), (begin, begin + len(text[begin:close].rstrip()))
