"""Conversations into `PREFIX.bin/.idx`, `PREFIX.mask`, `PREFIX.origin` and, last of all, `PREFIX.manifest.json`.

One document a conversation, so stock Megatron reads the pair; `loss_mask.py` describes the mask. A job
starts, ends and is killed as one of `tokenize` is, see `tokenize.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from data_tools.chat_template_files import special_tokens, template_source
from data_tools.errors import DataError, UsageError
from data_tools.job import DatasetJob
from data_tools.manifest import CHAT_VERSION, Manifest
from data_tools.progress import Progress
from data_tools.records import TRAINABLE, Thinking
from data_tools.tokenize import TokenizeResult, write_dataset
from data_tools.tokenizer import Tokenizer, tokenizer_file

if TYPE_CHECKING:
    from data_tools.encode import BlockEncoder


@dataclass(frozen=True)
class ChatJob(DatasetJob):
    """What `chat` was asked to do.

    Attributes:
        chat_template: Takes the place of the tokenizer's.
        train_on: Some of `records.TRAINABLE`, `assistant` among them.
        thinking: Which traces stay.
    """

    adapter: str = "messages"
    chat_template: Path | None = None
    train_on: frozenset[str] = frozenset(TRAINABLE)
    thinking: Thinking = "keep"

    suffixes: ClassVar[tuple[str, ...]] = (".bin", ".idx", ".origin", ".mask")

    @cached_property
    def _template(self) -> tuple[str, Path]:
        return template_source(tokenizer_file(self.tokenizer).parent, self.chat_template)

    @property
    def template(self) -> str:
        """The text of the chat template.

        Raises:
            DataError: If there is none.
        """
        return self._template[0]

    @property
    def template_path(self) -> Path:
        """The file it stands in."""
        return self._template[1]

    @property
    def template_sha256(self) -> str:
        """Of the template's text."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    @property
    def template_tokens(self) -> dict[str, str]:
        """The tokens that the template asks for by name, such as `bos_token`; not the fingerprint's business."""
        named = special_tokens(tokenizer_file(self.tokenizer).parent)
        return {name: token for name, token in sorted(named.items()) if name in self.template}

    @property
    def settings(self) -> dict[str, Any]:
        """As in `DatasetJob`."""
        own: dict[str, Any] = {
            "chat_template": self.template_sha256,
            "train_on": sorted(self.train_on),
            "thinking": self.thinking,
        }
        own |= {"template_tokens": self.template_tokens, "version": CHAT_VERSION}
        return super().settings | own

    def settings_of(self, manifest: Manifest) -> dict[str, Any]:
        """As in `DatasetJob`."""
        chat = manifest.chat
        if chat is None:
            raise DataError(f"{self.output}: holds documents of text; give --overwrite, or another --output")
        own: dict[str, Any] = {
            "chat_template": chat.template_sha256,
            "train_on": chat.train_on,
            "thinking": chat.thinking,
        }
        own |= {"template_tokens": chat.template_tokens, "version": chat.version}
        return {name: own.get(name, getattr(manifest, name, None)) for name in self.settings}

    def load_encoder(self) -> type[BlockEncoder]:
        """As in `DatasetJob`."""
        from data_tools.chat_write import ChatEncoder

        return ChatEncoder

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer; it parses control tokens, and `chat_write.py` sees to it that only the template writes any."""
        return Tokenizer.load(self.tokenizer, special_tokens="parse", engine=self.bpe)

    def check(self) -> None:
        """As in `DatasetJob`."""
        super().check()
        unknown = sorted(self.train_on - set(TRAINABLE))
        if unknown or "assistant" not in self.train_on:
            raise UsageError(
                f"--train-on: {','.join(sorted(self.train_on))}: assistant must be named, and may be with "
                f"{', '.join(TRAINABLE[1:])}; try {','.join(TRAINABLE)}"
            )
        if self.special_tokens == "parse":
            raise UsageError("--special-tokens: parse: would let text forge turns; give literal or reject")


def chat(job: ChatJob, progress: Progress, *, load: Callable[[], Tokenizer] | None = None) -> TokenizeResult:
    """Makes token ids and loss masks of conversations, unless they are there already; see `write_dataset`."""
    return write_dataset(job, progress, load=load)
