"""Strings that end a completion, wherever the borders of tokens fall."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""The text of some ids, control tokens spelled out."""


class StopStrings:
    """Looks for strings in the decoded end of a completion.

    Every token is at least one byte of text, so a string of n bytes lies in the last n tokens once its last one is
    there. One token more is decoded, because some decoders drop a blank before the first.

    Args:
        strings: Not empty, each of them.
        decode: Of the tokenizer.
    """

    def __init__(self, strings: Sequence[str], decode: Decode) -> None:
        self._strings, self._decode = tuple(strings), decode
        self._num_tokens = 1 + max((len(string.encode()) for string in strings), default=0)

    def are_in(self, token_ids: Sequence[int]) -> bool:
        """Whether the text of `token_ids` holds one of the strings and did not before its last token."""
        if not self._strings:
            return False
        text = self._decode(token_ids[-self._num_tokens :])
        return any(string in text for string in self._strings)
