"""A question as the ids that a fine-tuned model was taught to answer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from data_tools.chat_template_files import template_source
from data_tools.prompts import PromptEncoder


class ChatPrompt(NamedTuple):
    """Ids of a rendered question.

    Attributes:
        ids: With the begin of the assistant's turn.
        stop_ids: Tokens that end an answer; see `PromptEncoder`.
    """

    ids: list[int]
    stop_ids: frozenset[int]


def chat_prompt(folder: Path, question: str) -> ChatPrompt:
    """Renders a question as the user's only turn, in the chat template of a tokenizer's folder.

    Args:
        folder: Of the tokenizer; checkpoints of an sft stage have one with its template.
        question: What the user says; a control token that it spells is taken for one.

    Raises:
        DataError: There is no template.
    """
    encoder = PromptEncoder(folder, template_source(folder, None)[0])
    (ids,) = encoder.encode([encoder.render([{"role": "user", "content": question}])])
    return ChatPrompt(list(ids), encoder.stop_ids)
