"""Which documents two corpora share: exact duplicates, and n-grams by document, in bounded memory.

The n-grams of the smaller corpus become a sorted array of 64-bit hashes; the larger is streamed past it,
then the smaller once more past what was found. An array that would exceed `max_hashes` is cut to a range of
hashes, and both corpora are read once for each range. Memory: up to 32 bytes x max_hashes, 22 bytes a document
of both, some 17 more for each of fewer than n words, and some ten times the longest document; it does not grow with
the text.

A document is an exact duplicate if all its words, in order, are those of a document of the other corpus; how
words are told apart stands in `data_tools.ngrams`. Documents of fewer than n words have no n-gram: they are looked for
as a whole, anywhere within a document of the other corpus. A short one may stand there by chance.

The report is JSON lines. One for each pair of corpora says what was compared, so that nothing found can be told from
nothing looked for: `n`, `within` (true: short documents were looked for within others), and `pair`, of both sides
{name, documents, too_short, files: [{path, sha256, adapter}]}. Then comes one for each document with a hit, of both
sides:

| field     | meaning |
|-----------|---------|
| side      | name of the corpus that the document belongs to |
| against   | name of the other |
| file, row | where it stands, rows from 1 |
| id        | the record's own, or one made of its content |
| ngrams    | n-grams of the document |
| hits      | of these, how many the other corpus holds |
| share     | hits / ngrams; 0 where there are none |
| duplicate | whether the other corpus holds the same document |
| within    | of a document of fewer than n words: whether one of the other corpus holds all of it, in a row |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from data_tools.adapters.adapter import Adapter
from data_tools.documents import documents_of
from data_tools.inputs import find_inputs
from data_tools.ngrams import Counts, Hashed, Hashes, expected_false_hits, hash_documents
from data_tools.parts import InputFile
from data_tools.progress import NoProgress, Progress

MAX_HASHES = 32_000_000
"""1.3 GB in all (measured); the n-grams of some 200 MB of English text."""

_Small = npt.NDArray[np.int32]

_BLOCK_CHARACTERS = 1 << 20
_MOST_BUCKETS = 1 << 25


@dataclass(frozen=True)
class Place:
    """Where a document stands."""

    file: str
    row: int
    id: str


@dataclass(frozen=True)
class Corpus:
    """Documents of some files.

    Attributes:
        name: For people.
        parts: Files, folders and globs, and the adapter that reads their records.
        skips_bad: Whether records without text are passed over; see `documents_of`.
    """

    name: str
    parts: tuple[tuple[Sequence[str | Path], Adapter], ...]
    skips_bad: bool = False

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(find_inputs(names).size for names, _ in self.parts)

    def documents(self, progress: Progress) -> Iterator[tuple[Place, str]]:
        """Every document, in order.

        Raises:
            DataError: If an input cannot be read, or at the first record without text.
        """
        for names, adapter in self.parts:
            for file in find_inputs(names).files:
                yield from self._documents(file, adapter, progress)

    def _documents(self, file: InputFile, adapter: Adapter, progress: Progress) -> Iterator[tuple[Place, str]]:
        for row, document in documents_of(file, adapter, progress, skips_bad=self.skips_bad):
            yield Place(str(file.path), row, document.id), document.text

    def hashed(self, n: int, progress: Progress) -> Iterator[Hashed]:
        """The hashes of every document, some at a time."""
        texts: list[str] = []
        characters = 0
        for _, text in self.documents(progress):
            texts.append(text)
            characters += len(text)
            if characters >= _BLOCK_CHARACTERS:
                yield hash_documents(texts, n)
                texts, characters = [], 0
        if texts:
            yield hash_documents(texts, n)


@dataclass(frozen=True)
class Side:
    """What one corpus shares with the other, by document.

    Attributes:
        corpus: The corpus.
        ngrams: n-grams of each document.
        hits: Of these, how many the other holds.
        duplicates: Whether the other holds the same document.
        within: Whether a document of fewer than n words stands in one of the other's.
    """

    corpus: Corpus
    ngrams: _Small
    hits: _Small
    duplicates: npt.NDArray[np.bool_]
    within: npt.NDArray[np.bool_]

    @property
    def touched(self) -> npt.NDArray[np.bool_]:
        """The documents with a hit or a duplicate, or that stand within another."""
        return (self.hits > 0) | self.duplicates | self.within

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """The share of its n-grams that the other holds, of each document."""
        shares: npt.NDArray[np.float64] = self.hits / np.maximum(1, self.ngrams)
        return shares


@dataclass(frozen=True)
class Overlap:
    """What two corpora share.

    Attributes:
        n: Words of an n-gram.
        sides: Of the first corpus, of the second.
        passes: How often both were read.
        false_hits: n-grams found although they are not there, on average over all choices of hashes.
    """

    n: int
    sides: tuple[Side, Side]
    passes: int
    false_hits: float


def find_overlap(
    first: Corpus, second: Corpus, *, n: int = 13, max_hashes: int = MAX_HASHES, progress: Progress | None = None
) -> Overlap:
    """Compares two corpora.

    Args:
        first: One.
        second: The other.
        n: Words of an n-gram.
        max_hashes: n-grams of the smaller corpus that are held at once.
        progress: Is told the bytes read.

    Raises:
        DataError: As for `Corpus.documents`.
    """
    progress = progress or NoProgress()
    small, large = sorted((first, second), key=lambda corpus: corpus.size)
    if small is large:
        small, large = first, second
    of_small, of_large = _Counts(), _Counts()
    begin, passes = 0, 0
    num_known = 0
    while begin < 2**64:
        index = _build(small, n, begin, max_hashes, of_small if not passes else None, progress)
        short = of_small.short_documents(n) if not passes else {}
        _stream(large, n, index, of_large, short, is_first=not passes, progress=progress)
        short = of_large.short_documents(n) if not passes else {}
        _stream(small, n, index.found_only(), of_small, short, is_first=False, progress=progress)
        begin, passes = index.end, passes + 1
        num_known += len(index.hashes)
    sides = (of_small.side(small, of_large), of_large.side(large, of_small))
    return Overlap(
        n=n,
        sides=sides if sides[0].corpus is first else (sides[1], sides[0]),
        passes=passes,
        false_hits=expected_false_hits(int(sides[1].ngrams.sum()), num_known),
    )


class _Counts:
    """What is known of each document of one corpus."""

    def __init__(self) -> None:
        self.documents: list[Hashes] = []
        self.words: list[_Small] = []
        self.short: dict[int, _Index] = {}
        self.ngrams: list[_Small] = []
        self.hits: list[_Small] = []

    def add(self, block: Hashed) -> None:
        self.documents.append(block.documents)
        self.words.append(block.words.astype(np.int32))
        self.ngrams.append(block.ngrams.astype(np.int32))
        self.hits.append(np.zeros(len(block.ngrams), np.int32))

    def short_documents(self, n: int) -> dict[int, _Index]:
        """Documents of fewer than n words, by their number of words; what a stream finds of them is marked in them."""
        documents, words = _joined(self.documents, np.uint64), _joined(self.words, np.int32)
        lengths = np.unique(words[(words > 0) & (words < n)]).tolist()
        self.short = {length: _Index(_sorted_once([documents[words == length]]), 0, 2**64) for length in lengths}
        return self.short

    def side(self, corpus: Corpus, other: _Counts) -> Side:
        documents = _joined(self.documents, np.uint64)
        found = _joined([index.hashes[index.found] for index in self.short.values()], np.uint64)
        return Side(
            corpus=corpus,
            ngrams=_joined(self.ngrams, np.int32),
            hits=_joined(self.hits, np.int32),
            duplicates=np.isin(documents, _joined(other.documents, np.uint64)) & (documents != 0),
            within=np.isin(documents, found) & (documents != 0),
        )


def _joined[T: np.generic](parts: list[npt.NDArray[T]], kind: type[T]) -> npt.NDArray[T]:
    return np.concatenate([np.zeros(0, kind), *parts])


class _Index:
    """Sorted hashes of one range, and buckets that say where each of their first bits begins."""

    def __init__(self, hashes: Hashes, begin: int, end: int) -> None:
        self.hashes, self.begin, self.end = hashes, begin, end
        self.found = np.zeros(len(hashes), np.bool_)
        width = end - begin
        buckets = min(_MOST_BUCKETS, 1 << max(1, len(hashes).bit_length()))
        self._shift = np.uint64(max(0, (width - 1).bit_length() - (buckets.bit_length() - 1)))
        keys = ((hashes - np.uint64(begin)) >> self._shift).astype(np.int64)
        depths = np.bincount(keys, minlength=((width - 1) >> int(self._shift)) + 1)
        self._first = np.concatenate((np.zeros(1, np.uint32), np.cumsum(depths, dtype=np.uint32)))
        self._deepest = int(depths.max(initial=0))

    def find(self, hashes: Hashes) -> Counts:
        """Positions in `hashes` of those that the index holds; marks what was found."""
        positions = np.arange(len(hashes))
        if self.begin or self.end < 2**64:
            positions = np.flatnonzero((hashes >= np.uint64(self.begin)) & (hashes <= np.uint64(self.end - 1)))
        keys = ((hashes[positions] - np.uint64(self.begin)) >> self._shift).astype(np.int64)
        at, stop = self._first[keys], self._first[keys + 1]
        hits: list[Counts] = []
        for _ in range(self._deepest):
            left = np.flatnonzero(at < stop)
            at, stop, positions = at[left], stop[left], positions[left]
            same = self.hashes[at] == hashes[positions]
            self.found[at[same]] = True
            hits.append(positions[same])
            at = at + np.uint32(1)
        return _joined(hits, np.int64)

    def found_only(self) -> _Index:
        """The index of what was found."""
        return _Index(self.hashes[self.found], self.begin, self.end)


def _build(corpus: Corpus, n: int, begin: int, max_hashes: int, counts: _Counts | None, progress: Progress) -> _Index:
    """The index of the corpus's n-grams from the hash `begin` on, as many as may be held."""
    end = 2**64
    kept: list[Hashes] = []
    held = 0
    for block in corpus.hashed(n, progress):
        if counts is not None:
            counts.add(block)
        hashes = block.hashes[(block.hashes >= np.uint64(begin)) & (block.hashes <= np.uint64(end - 1))]
        kept.append(hashes)
        held += len(hashes)
        if held > max_hashes:
            unique = _sorted_once(kept)
            if 2 * len(unique) > max_hashes:  # else most were repeats, and there is room again
                end = int(unique[len(unique) // 2])
                unique = unique[: len(unique) // 2].copy()
            kept, held = [unique], len(unique)
    return _Index(_sorted_once(kept), begin, end)


def _sorted_once(parts: list[Hashes]) -> Hashes:
    """Each hash once, rising; np.unique takes a hash table, which is ten times slower here."""
    hashes = _joined(parts, np.uint64)
    hashes.sort()
    is_new: npt.NDArray[np.bool_] = np.concatenate((np.ones(1, np.bool_), hashes[1:] != hashes[:-1]))
    return np.asarray(hashes[is_new[: len(hashes)]], np.uint64)


def _stream(
    corpus: Corpus,
    n: int,
    index: _Index,
    counts: _Counts,
    short: Mapping[int, _Index],
    *,
    is_first: bool,
    progress: Progress,
) -> None:
    """Adds to each document what the index holds of it; marks the short documents of the other that stand in it."""
    for number, block in enumerate(corpus.hashed(n, progress)):
        if is_first:
            counts.add(block)
        for length, documents in short.items():
            documents.find(block.grams(length))
        owners = block.owners[index.find(block.hashes)]
        counts.hits[number] += np.bincount(owners, minlength=len(block.ngrams)).astype(np.int32)


def write_pair(overlap: Overlap, write: Callable[[bytes], object]) -> None:
    """Writes the line that says what was compared; every input is read once more, for its hash.

    Args:
        overlap: What was found.
        write: Takes whole lines.
    """
    sides = [
        {
            "name": side.corpus.name,
            "documents": len(side.ngrams),
            "too_short": int((side.ngrams == 0).sum()),
            "files": [
                {"path": str(file.path), "sha256": _sha256(file.path), "adapter": adapter.name}
                for names, adapter in side.corpus.parts
                for file in find_inputs(names).files
            ],
        }
        for side in overlap.sides
    ]
    write(orjson.dumps({"pair": sides, "n": overlap.n, "within": True}, option=orjson.OPT_APPEND_NEWLINE))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_report(overlap: Overlap, write: Callable[[bytes], object], progress: Progress | None = None) -> int:
    """Writes a line for each document with a hit; the fields are described at the top of this file.

    Args:
        overlap: What was found.
        write: Takes whole lines.
        progress: Is told the bytes read: every document is read once more, for its place.

    Returns:
        Lines written.
    """
    lines = 0
    for side, other in zip(overlap.sides, reversed(overlap.sides), strict=True):
        touched = side.touched
        if not touched.any():
            continue
        for number, (place, _) in enumerate(side.corpus.documents(progress or NoProgress())):
            if not touched[number]:
                continue
            fields = {
                "side": side.corpus.name,
                "against": other.corpus.name,
                "file": place.file,
                "row": place.row,
                "id": place.id,
                "ngrams": int(side.ngrams[number]),
                "hits": int(side.hits[number]),
                "share": round(float(side.shares[number]), 4),
                "duplicate": bool(side.duplicates[number]),
                "within": bool(side.within[number]),
            }
            write(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))
            lines += 1
    return lines
