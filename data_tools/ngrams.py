r"""Documents as 64-bit hashes of their words and n-grams, a block at a time, in numpy.

A text is lower-cased, letter by letter; a word is a run of ASCII letters and digits and of whatever else
Unicode's `\w` holds; everything else, the underscore too, separates. So case, punctuation and layout are no
difference. Scripts without spaces make one word of a run: there an n-gram spans n runs.

The hash of a word is a polynomial of its bytes modulo 2**64, mixed by splitmix64's finaliser; that of an
n-gram a polynomial of its words, mixed likewise. Two different n-grams share a hash with a probability of
about 2**-64; `expected_false_hits` says what that is for a whole comparison.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

CHUNK_BYTES = 1 << 17
"""Text hashed at once: eight bytes of each byte are held, and a chunk's stay in the cache."""

_WORD = re.compile(r"\w")
_ASCII = bytes(range(128))
_LOWERED = bytes(byte if byte >= 0x80 else ord(chr(byte).lower()) if chr(byte).isalnum() else 0 for byte in range(256))
_BYTE_BASE, _WORD_BASE = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95  # odd, so that they have inverses modulo 2**64


@dataclass(frozen=True)
class Hashed:
    """Some documents.

    Attributes:
        documents: Hash of all words of each, in their order: that of an n-gram of as many words; 0 where there is none.
        words: Of each.
        ngrams: n-grams of each: its words less n - 1.
        hashes: Of all n-grams, one document after the other.
        owners: Position of the document of each n-gram.
        spelled: Hash of each word, one document after the other.
    """

    documents: Hashes
    words: Counts
    ngrams: Counts
    hashes: Hashes
    owners: Counts
    spelled: Hashes

    def grams(self, n: int) -> Hashes:
        """The hashes of the n-grams of another n, one document after the other."""
        return _inside(self.spelled, np.repeat(np.arange(len(self.words)), self.words), n)[0]


def hash_documents(texts: Sequence[str], n: int) -> Hashed:
    """The hashes of some documents.

    Args:
        texts: The documents.
        n: Words of an n-gram.
    """
    encoded = [_plain_bytes(text) for text in texts]
    words, starts = _words(np.frombuffer(b"\0".join(encoded).translate(_LOWERED), np.uint8))
    ends = np.cumsum([len(raw) + 1 for raw in encoded])
    last = np.searchsorted(starts, ends)  # words that begin before the end of each document
    counts = np.diff(last, prepend=0)
    hashes, owners = _inside(words, np.repeat(np.arange(len(texts)), counts), n)
    return Hashed(
        documents=_whole(words, counts),
        words=counts,
        ngrams=np.maximum(0, counts - n + 1),
        hashes=hashes,
        owners=owners,
        spelled=words,
    )


def _inside(words: Hashes, owners: Counts, n: int) -> tuple[Hashes, Counts]:
    """The n-grams that lie within one document, and the document of each."""
    hashes = _rolled(words, n)
    inside = owners[: len(hashes)] == owners[len(owners) - len(hashes) :]
    return hashes[inside], owners[: len(hashes)][inside]


def expected_false_hits(looked_up: int, known: int) -> float:
    """n-grams that are found although they are not there, on average: pairs times 2**-64."""
    return looked_up * known / 2**64


def _plain_bytes(text: str) -> bytes:
    """UTF-8 whose non-ASCII letters are lower and whose other non-ASCII characters are spaces."""
    raw = text.encode("utf-8")
    if text.isascii():
        return raw
    # A text has few different characters beyond ASCII: replacing one after the other beats a regular expression.
    for character in set(raw.translate(None, _ASCII).decode("utf-8")):
        plain = _plain(character)
        if plain != character:
            raw = raw.replace(character.encode("utf-8"), plain.encode("utf-8"))
    return raw


@functools.cache
def _plain(character: str) -> str:
    return character.lower() if _WORD.match(character) else " "


def _words(raw: npt.NDArray[np.uint8]) -> tuple[Hashes, Counts]:
    """The hash and the first byte of each word."""
    hashes, starts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    begin = 0
    while begin < len(raw):
        end = _chunk_end(raw, begin)
        chunk = raw[begin:end]
        is_word = chunk != 0
        first = np.flatnonzero(is_word & ~np.concatenate(([False], is_word[:-1])))
        if len(first):
            powers, inverses = _powers(_BYTE_BASE, len(chunk))
            hashes.append(_mixed(np.add.reduceat(chunk * powers, first) * inverses[first]))
            starts.append(first + begin)
        begin = end
    return np.concatenate(hashes), np.concatenate(starts)


def _chunk_end(raw: npt.NDArray[np.uint8], begin: int) -> int:
    """Where the next chunk ends: at a separator, so that no word is cut."""
    end = begin + CHUNK_BYTES
    while end < len(raw):
        separators = np.flatnonzero(raw[end : end + CHUNK_BYTES] == 0)
        if len(separators):
            return end + int(separators[0])
        end += CHUNK_BYTES
    return len(raw)


def _rolled(words: Hashes, n: int) -> Hashes:
    """The hash of every n words that follow one another, by doubling: 13 words in five steps."""
    if len(words) < n:
        return np.zeros(0, np.uint64)
    rolled, length = words, 1
    for bit in f"{n:b}"[1:]:
        rolled = rolled[:-length] * np.uint64(pow(_WORD_BASE, length, 2**64)) + rolled[length:]
        length *= 2
        if bit == "1":
            rolled = rolled[:-1] * np.uint64(_WORD_BASE) + words[length:]
            length += 1
    return _mixed(rolled if n > 1 else words.copy())


def _whole(words: Hashes, counts: Counts) -> Hashes:
    """The hash of all words of each document: that of an n-gram of as many words."""
    result = np.zeros(len(counts), np.uint64)
    behind = np.cumsum(counts)[counts > 0]
    if len(behind):
        powers, inverses = _powers(_WORD_BASE, len(words))
        first = behind - counts[counts > 0]
        result[counts > 0] = _mixed(np.add.reduceat(words * inverses, first) * powers[behind - 1])
    return result


_KNOWN_POWERS: dict[int, tuple[Hashes, Hashes]] = {}


def _powers(base: int, count: int) -> tuple[Hashes, Hashes]:
    """The first powers of a base and of its inverse, modulo 2**64; kept for the next chunk."""
    known = _KNOWN_POWERS.get(base)
    if known is None or len(known[0]) < count:
        both = []
        for factor in (base, pow(base, -1, 2**64)):
            factors = np.full(max(count, CHUNK_BYTES + 4096), factor, np.uint64)
            factors[0] = 1
            both.append(np.multiply.accumulate(factors))
        known = _KNOWN_POWERS[base] = (both[0], both[1])
    return known[0][:count], known[1][:count]


def _mixed(hashes: Hashes) -> Hashes:
    """splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes ^= hashes >> np.uint64(shift)
        hashes *= np.uint64(factor)
    hashes ^= hashes >> np.uint64(31)
    return hashes
