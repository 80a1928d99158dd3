"""One file for each data set: its records into documents and conversations."""

from __future__ import annotations

from data_tools.adapters import (
    messages,
    nemotron_cc_math_v1,
    nemotron_cc_v2,
    nemotron_crossthink,
    nemotron_post_training_v1,
    nemotron_post_training_v2,
    nemotron_pretraining_code_v1,
    nemotron_pretraining_sft_v1,
    nemotron_pretraining_specialized_v1,
    openthoughts3,
    prompt_completion,
    sharegpt,
    text,
)
from data_tools.adapters.adapter import Adapter
from data_tools.errors import UsageError

_FILES = (
    text,
    messages,
    sharegpt,
    prompt_completion,
    openthoughts3,
    nemotron_pretraining_sft_v1,
    nemotron_pretraining_specialized_v1,
    nemotron_cc_v2,
    nemotron_cc_math_v1,
    nemotron_pretraining_code_v1,
    nemotron_post_training_v1,
    nemotron_post_training_v2,
    nemotron_crossthink,
)
ADAPTERS: dict[str, Adapter] = {file.ADAPTER.name: file.ADAPTER for file in _FILES}


def adapter(name: str, *, key: str | None = None) -> Adapter:
    """The adapter of a name.

    Args:
        name: One of `ADAPTERS`.
        key: Key of the text, for the adapter `text` alone; None: its default.

    Raises:
        UsageError: If there is no such adapter, or it reads no key of choice.
    """
    if name not in ADAPTERS:
        import difflib

        near = difflib.get_close_matches(name, ADAPTERS, n=3, cutoff=0.5)
        hint = f"near ones: {', '.join(near)}" if near else f"there are: {', '.join(sorted(ADAPTERS))}"
        raise UsageError(f"--adapter: no adapter {name!r}; {hint}")
    if key is None:
        return ADAPTERS[name]
    if name != "text":
        raise UsageError(f"--key: {key!r}: the adapter {name} knows its columns; only the adapter text takes a key")
    return text.text_adapter(key)
