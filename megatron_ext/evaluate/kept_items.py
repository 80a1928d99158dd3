"""What has been found item by item, kept while it is found, so that a killed evaluation goes on from it.

While an evaluation runs every rank appends whole lines to `samples.rank_N.jsonl`; a line that a kill has cut is
dropped and counted. At the end the main rank sorts all lines into `samples.jsonl.zst` and removes those files. What
the harness has asked the engine, of which it makes lines at a task's end only, is kept the same way in
`requests.rank_N.jsonl` (`item` is a hash of the request) and removed at the end.

| field  | holds |
|--------|-------|
| task   | name of the task |
| item   | id of the item in it |
| sample | number of the answer to it, from 0; 0 where each item has one line |
| score  | of the headline metric: 1 or 0 of a right or wrong answer; of a text its summed loss in nats |
| weight | what the sum of scores is divided by; 1 where it is not there, of a text its tokens |
| …      | what the kind keeps: prompt, text, … (docs/reference/results.md) |
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from data_tools.atomic_files import write_atomically
from data_tools.errors import DataError
from megatron_ext.datasets.rollout_file import zstandard_of_extra
from megatron_ext.evaluate.results import ITEMS, evaluate_again

Line = dict[str, Any]
Key = tuple[str, int]
"""Item and sample."""

SAMPLES, REQUESTS = "samples", "requests"
"""First parts of the names of files while an evaluation runs."""


def read_items(folder: Path) -> Iterator[Line]:
    """The lines of a finished evaluation, in order.

    Raises:
        DataError: There are none, or they are damaged.
    """
    zstandard = zstandard_of_extra("answers are kept with it")
    file = folder / ITEMS
    try:
        whole = zstandard.ZstdDecompressor().decompressobj()
        content = whole.decompress(file.read_bytes())
        if not whole.eof:  # what there is of a cut file is decompressed without a word
            raise ValueError("it is cut")
        yield from (json.loads(line) for line in content.splitlines())
    except (zstandard.ZstdError, ValueError, OSError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {evaluate_again(folder)}") from None


class KeptItems:
    """The lines of an evaluation that runs.

    Args:
        folder: Of the evaluation.
        rank: Of this process.
        lines: That were there when it began (`lines_on_disk`), of all ranks.
        kept_as: `SAMPLES` or `REQUESTS`.
        writes: Whether this rank writes: of tensor-parallel ranks, which find the same, the first.

    Attributes:
        folder: Of the evaluation.
    """

    def __init__(
        self, folder: Path, *, rank: int, lines: Iterable[Line], kept_as: str = SAMPLES, writes: bool = True
    ) -> None:
        self.folder = folder
        self._file = folder / f"{kept_as}.rank_{rank}.jsonl"
        self._writes = writes
        self._opened: IO[str] | None = None
        self._writing = threading.Lock()  # answers are kept by the threads that have scored them
        self._lines: dict[str, list[Line]] = {}
        for line in lines:
            self._lines.setdefault(line["task"], []).append(line)

    def of(self, task: str) -> list[Line]:
        """The lines of a task that were there at the beginning: the same on all ranks."""
        return self._lines.get(task, [])

    def add(self, task: str, item: str, **values: Any) -> Line:
        """Keeps one more line; it is on its way to the disk when this returns. Of one rank for each item and sample."""
        line = {"task": task, "item": item, "sample": 0} | values
        if not self._writes:
            return line
        text = json.dumps(line, ensure_ascii=False) + "\n"
        with self._writing:
            if self._opened is None:
                self._opened = self._file.open("a", encoding="utf-8")
            self._opened.write(text)
            self._opened.flush()
        return line

    def close(self) -> None:
        """Closes the file of this rank."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def runs_of_missing(item: str, there: Container[Key], num_samples: int) -> list[tuple[int, int]]:
    """The samples of an item that are not there, as runs of (first, count).

    >>> runs_of_missing("a", {("a", 1): {}, ("b", 0): {}}, 4)
    [(0, 1), (2, 2)]
    """
    missing = [sample for sample in range(num_samples) if (item, sample) not in there]
    runs = []
    for _, run in itertools.groupby(enumerate(missing), key=lambda pair: pair[1] - pair[0]):
        samples = [sample for _, sample in run]
        runs.append((samples[0], len(samples)))
    return runs


def lines_on_disk(folder: Path, kept_as: str = SAMPLES) -> tuple[list[Line], int]:
    """The lines of an unfinished evaluation, each item and sample once, and how many a kill has cut.

    A line that was cut is also removed from its file, so that what is appended begins on a line of its own.
    """
    found: dict[tuple[str, str, int], Line] = {}
    cut = 0
    for file in sorted(folder.glob(f"{kept_as}.rank_*.jsonl")):
        content = file.read_bytes()
        whole, newline, rest = content.rpartition(b"\n")
        if rest:
            cut += 1
            write_atomically(file, whole + newline)
        for line in map(json.loads, whole.splitlines()):
            found.setdefault((line["task"], line["item"], line["sample"]), line)
    return list(found.values()), cut


def finish_items(folder: Path) -> None:
    """Sorts all lines into `samples.jsonl.zst` and removes the files of the ranks. Only the main rank may call this."""
    lines, _ = lines_on_disk(folder)
    lines.sort(key=lambda line: (line["task"], line["item"], line["sample"]))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomically(
        folder / ITEMS, zstandard_of_extra("answers are kept with it").ZstdCompressor().compress(text.encode())
    )


def remove_parts(folder: Path) -> None:
    """Removes the files of the ranks, once results.json is there."""
    for kept_as in (SAMPLES, REQUESTS):
        for file in folder.glob(f"{kept_as}.rank_*.jsonl"):
            file.unlink()
