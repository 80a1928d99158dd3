"""What adapters make of one input record: a document to read, or a conversation to learn from.

A conversation is also a document (`as_document`): pretraining reads what was said, fine-tuning learns
whose turn it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Domain = Literal["code", "general", "math", "science"]
Role = Literal["system", "user", "assistant", "tool"]
Thinking = Literal["keep", "strip", "last"]
"""Which traces of thinking stay; see `speech.py`."""

TRAINABLE = ("assistant", "thinking", "tools")
"""What of a conversation is trained on, of choice; see `speech.py`."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text.

    Attributes:
        id: The record's own id, or one made of its content; the validation split hangs on it.
        text: Never empty.
        domain: What it is about.
        answer: The part that answers, where the record marks one; None where it cannot be known.
    """

    id: str
    text: str
    domain: Domain = "general"
    answer: str | None = None


class Turn(NamedTuple):
    """One contribution to a conversation; a trace of thinking stands in `content` as `<think>…</think>`.

    Attributes:
        role: Who speaks.
        content: What is said; may be empty only beside tool calls.
        tool_calls: The calls as compact JSON, a list of {name, arguments}; None where there are none.
    """

    role: Role
    content: str
    tool_calls: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Some turns, at least one of them the assistant's.

    Attributes:
        id: As in `Document`.
        turns: In order.
        domain: What it is about.
        tools: Definitions of the tools as compact JSON, None where there are none.
    """

    id: str
    turns: tuple[Turn, ...]
    domain: Domain = "general"
    tools: str | None = None


def as_document(conversation: Conversation) -> Document:
    r"""What was said, a blank line between turns, no names of speakers and no markup of chats.

    A pretraining document looks like a page that states a question and works it out.

    >>> turns = (Turn("user", "1 + 1?"), Turn("assistant", "<think>\nEasy.\n</think>\n\n2"))
    >>> as_document(Conversation("a", turns)).text
    '1 + 1?\n\n<think>\nEasy.\n</think>\n\n2'
    """
    answers = [turn.content for turn in conversation.turns if turn.role == "assistant" and turn.content]
    return Document(
        id=conversation.id,
        text="\n\n".join(turn.content for turn in conversation.turns if turn.content),
        domain=conversation.domain,
        answer=answers[-1] if answers else None,
    )
