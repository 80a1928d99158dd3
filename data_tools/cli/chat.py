"""The verb `chat`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.cli.output import print_table, warn

if TYPE_CHECKING:
    from data_tools.manifest import Manifest


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = (
        "Turn conversations into PREFIX.bin, PREFIX.idx, PREFIX.mask and PREFIX.manifest.json, which is written last."
    )
    parser = verbs.add_parser("chat", help=about, description=about)
    parser.example = (
        "python -m data_tools chat --input data/demo/raw/shq.jsonl --adapter openthoughts3 \\\n"
        "      --tokenizer data/demo/tokenizer --output data/demo/chat/shq"
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="files, folders, globs, -: JSONL, packed or not; Parquet",
    )
    parser.add_argument("--adapter", default="messages", metavar="NAME", help="how records are read (default messages)")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder of tokenizer.json")
    parser.add_argument("--chat-template", type=Path, metavar="FILE", help="instead of the tokenizer's own")
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX", help="prefix of the four files")
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
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help="at a record without a conversation: stop (default), or leave it out, count it and list it",
    )
    parser.add_argument("--rejects", type=Path, metavar="FILE", help="list of such records (PREFIX.rejects.jsonl)")
    parser.add_argument("--overwrite", action="store_true", help="replace whatever stands at PREFIX")
    parser.set_defaults(verb=_chat)


def _chat(options: argparse.Namespace) -> None:
    from data_tools.chat import ChatJob, chat
    from data_tools.inputs import find_inputs
    from data_tools.progress import shown

    job = ChatJob(
        inputs=tuple(options.input),
        tokenizer=options.tokenizer,
        output=options.output,
        adapter=options.adapter,
        chat_template=options.chat_template,
        train_on=frozenset(options.train_on.split(",")),
        thinking=options.thinking,
        on_error=options.on_error,
        rejects=options.rejects,
        overwrite=options.overwrite,
        command=options.command,
    )
    with shown(f"chat {options.output.name}", find_inputs(job.inputs).size) as progress:
        result = chat(job, progress)
    if result.manifest.rejected:
        warn(f"{result.manifest.rejected:,} records were rejected; they are listed in {job.rejects_path}")
    print_table(f"{options.output}: {'already done' if result.was_done else 'done'}", ["", ""], _rows(result.manifest))


def _rows(manifest: Manifest) -> list[list[str]]:
    chat = manifest.chat
    assert chat is not None, "the job makes one"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.rejected_by_reason.items())
    ways = f"by segments, {chat.checked:,} compared with the whole" if chat.encoded_by == "segments" else "whole"
    return [
        ["conversations", f"{manifest.documents:,}"],
        ["rejected records", f"{manifest.rejected:,}" + (f" ({reasons})" if reasons else "")],
        ["tokens", f"{manifest.tokens:,}"],
        ["trained tokens", f"{chat.trained_tokens:,} ({100 * chat.trained_tokens / manifest.tokens:.1f} %)"],
        ["trained on", f"{', '.join(chat.train_on)}; thinking: {chat.thinking}"],
        ["chat template", f"{chat.template}, {chat.template_sha256[:16]}"],
        ["encoded", ways],
        ["data id", manifest.data_id[:16]],
    ]
