"""A question as the ids that a fine-tuned model was taught to answer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from data_tools.chat_encode import added_tokens
from data_tools.chat_template import ChatTemplate
from data_tools.chat_template_files import special_tokens, template_source
from data_tools.tokenizer import Tokenizer


class ChatPrompt(NamedTuple):
    """Ids of a rendered question.

    Attributes:
        ids: With the begin of the assistant's turn.
        stop_ids: Control tokens: an answer ends with the first of them.
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
    tokenizer = Tokenizer.load(folder, special_tokens="parse")
    tokens = added_tokens(tokenizer)
    source, _ = template_source(folder, None)
    template = ChatTemplate(source, control_tokens=tokens.control, variables=special_tokens(folder))
    text = template.render_prompt([{"role": "user", "content": question}])
    return ChatPrompt(tokenizer.encode(text), frozenset(tokens.ids[token] for token in tokens.control))
