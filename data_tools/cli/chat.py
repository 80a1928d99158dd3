"""The verb `chat`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.cli.dataset import add_inputs, add_machine, add_placing, add_rejecting, add_tokenizer, common, write
from data_tools.cli.selection import add_where, where_of

if TYPE_CHECKING:
    from data_tools.manifest import Manifest


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Turn conversations into PREFIX.bin, .idx, .mask, .origin and PREFIX.manifest.json, which is written last."
    parser = verbs.add_parser("chat", help=about, description=about)
    parser.example = (
        "python -m data_tools chat --input data/demo/raw/shq.jsonl --adapter openthoughts3 \\\n"
        "      --tokenizer data/demo/tokenizer --output data/demo/chat/shq"
    )
    add_inputs(parser, adapter="messages")
    add_tokenizer(parser)
    parser.add_argument("--chat-template", type=Path, metavar="FILE", help="instead of the tokenizer's own")
    parser.add_argument(
        "--train-on",
        default="assistant,thinking,tools",
        metavar="PARTS",
        help="assistant: its answers; thinking: its traces too; tools: turns that call tools too (default all three)",
    )
    parser.add_argument(
        "--thinking",
        choices=("keep", "strip", "last"),
        default="keep",
        help="traces that stay: all (default), none, those after the last user's turn",
    )
    parser.add_argument(
        "--special-tokens",
        choices=("literal", "reject"),
        default="literal",
        help="conversations that spell a control token: it stays plain characters (default), or they are left out",
    )
    add_where(parser)
    add_rejecting(parser, "conversation")
    add_machine(parser)
    add_placing(parser)
    parser.set_defaults(verb=_chat)


def _chat(options: argparse.Namespace) -> None:
    from data_tools.chat import ChatJob, chat

    job = ChatJob(
        inputs=tuple(options.input),
        chat_template=options.chat_template,
        train_on=frozenset(options.train_on.split(",")),
        thinking=options.thinking,
        where=where_of(options),
        special_tokens=options.special_tokens,
        adapter=options.adapter,
        **common(options),
    )
    write(job, options, chat, _rows)


def _rows(manifest: Manifest) -> list[list[str]]:
    from data_tools.inspection import summary

    chat = manifest.chat
    assert chat is not None, "the job makes one"
    return [
        *(list(row) for row in summary(manifest)),
        ["trained on", f"{', '.join(chat.train_on)}; thinking: {chat.thinking}"],
        ["chat template", f"{chat.template}, {chat.template_sha256[:16]}"],
    ]
