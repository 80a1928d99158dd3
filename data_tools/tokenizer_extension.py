"""Whether a tokenizer is another one with more tokens: then weights of the one can go on with the other.

That is so where both tokenizer.json are the same but for `added_tokens`, every token of the first has the same id in
the second, and the token that ends a document is the same. Whoever splits text in another way, or moves an id, gives
the weights other words for what they have learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from data_tools.tokenizer import is_json, tokenizer_file
from data_tools.tokenizer_json import eod_token_of, object_of, read_tokenizer, token_ids

_SHOWN = 5


def tokens_added(tokenizer: str | Path, *, to: str | Path) -> dict[str, int]:
    """The tokens that a tokenizer has more than another one, with their ids, ascending.

    Args:
        tokenizer: The larger one's folder, or file.
        to: The other one's.

    Raises:
        DataError: If it is not the other one with more tokens; with what differs.
    """
    (mine, here), (theirs, there) = _read(tokenizer), _read(to)
    moved = [
        f"{token!r} is id {here.get(token, 'none')} here, {number} there"
        for token, number in there.items()
        if here.get(token) != number
    ]
    if moved:
        more = f" and {len(moved) - _SHOWN:,} tokens more" if len(moved) > _SHOWN else ""
        raise DataError(f"ids moved: {'; '.join(moved[:_SHOWN])}{more}")
    differing = [
        key for key in sorted((mine.keys() | theirs.keys()) - {"added_tokens"}) if mine.get(key) != theirs.get(key)
    ]
    if differing:
        raise DataError(f"{', '.join(differing)} of tokenizer.json differ, so text is split in another way")
    of_mine = {token["content"]: token for token in mine.get("added_tokens") or []}
    for token in theirs.get("added_tokens") or []:
        if of_mine.get(token["content"]) != token:
            raise DataError(f"added_tokens: {token['content']!r} is taken from text in another way")
    ends = [eod_token_of(tokenizer_file(folder)) for folder in (tokenizer, to)]
    if ends[0] != ends[1]:
        raise DataError(f"documents end with {ends[0]!r} here, {ends[1]!r} there")
    added = {token: number for token, number in here.items() if token not in there}
    known = set(there.values())
    if shared := sorted(token for token, number in added.items() if number in known):
        raise DataError(f"{shared[0]!r} has id {added[shared[0]]}, which is another token's")
    return dict(sorted(added.items(), key=lambda item: item[1]))


def unused_ids(tokenizer: str | Path) -> tuple[int, ...]:
    """The ids below a tokenizer's largest that none of its tokens has, ascending; a SentencePiece model has none such.

    Raises:
        DataError: If there is no tokenizer.
    """
    path = tokenizer_file(tokenizer)
    content = read_tokenizer(path)
    if not is_json(content):
        return ()
    used = set(token_ids(path, content).values())
    return tuple(number for number in range(max(used)) if number not in used)


def _read(tokenizer: str | Path) -> tuple[dict[str, Any], dict[str, int]]:
    path = tokenizer_file(tokenizer)
    content = read_tokenizer(path)
    if not is_json(content):
        raise DataError(f"{path}: a SentencePiece model; only tokenizer.json can be compared")
    return object_of(path, content), token_ids(path, content)
