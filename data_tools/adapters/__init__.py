"""One file for each data set: its records into documents and conversations."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from data_tools.errors import UsageError

if TYPE_CHECKING:
    from data_tools.adapters.adapter import Adapter

NAMES = (
    "text",
    "messages",
    "sharegpt",
    "prompt-completion",
    "openthoughts3",
    "nemotron-pretraining-sft-v1",
    "nemotron-pretraining-specialized-v1",
    "nemotron-cc-v2",
    "nemotron-cc-math-v1",
    "nemotron-pretraining-code-v1",
    "nemotron-post-training-v1",
    "nemotron-post-training-v2",
    "nemotron-crossthink",
)
"""Of all adapters; each is the `ADAPTER` of the file of its name, which is loaded when it reads."""


def adapter_named(name: str, *, key: str | None = None) -> Adapter:
    """The adapter of a name.

    Args:
        name: One of `NAMES`.
        key: Key of the text, for the adapter `text` alone; None: its default.

    Raises:
        UsageError: As `check_adapter` does.
    """
    check_adapter(name, key=key)
    file = importlib.import_module(f"data_tools.adapters.{name.replace('-', '_')}")
    found: Adapter = file.ADAPTER if key is None else file.text_adapter(key)
    return found


def check_adapter(name: str, *, key: str | None = None) -> None:
    """Refuses what `adapter_named` could not give, without loading any.

    Raises:
        UsageError: If there is no such adapter, or it reads no key of choice.
    """
    if name not in NAMES:
        import difflib

        near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.5)
        hint = f"near ones: {', '.join(near)}" if near else f"there are: {', '.join(sorted(NAMES))}"
        raise UsageError(f"--adapter: no adapter {name!r}; {hint}")
    if key is not None and name != "text":
        raise UsageError(f"--key: {key!r}: the adapter {name} knows its columns; only the adapter text takes a key")
