"""Megabytes of text per second that `overlap` compares, and the memory it takes.

    OMP_NUM_THREADS=1 python tests/benchmarks/overlap.py [--megabytes 200]

Two corpora of that size (words drawn by Zipf's law from 50,000, documents of about 500 words), of which one in
a hundred documents of the second is one of the first; and an evaluation set of 2,000 questions, a tenth of them
planted in the first corpus. Found must be what was planted. Memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from data_tools.adapters import adapter_named
from data_tools.overlap import Corpus, find_overlap

DOCUMENT_WORDS, QUESTION_WORDS, QUESTIONS = 500, 40, 2000


def main() -> None:
    """Measures the evaluation set against one corpus, then the two corpora against each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="size of each corpus")
    size = parser.parse_args().megabytes * 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        questions = [text for text, _ in zip(_texts(0, QUESTION_WORDS), range(QUESTIONS), strict=False)]
        shared = _write(root / "a.jsonl", size, 1, planted=questions[::10])
        _write(root / "b.jsonl", size, 2, planted=shared)
        _write(root / "eval.jsonl", 0, 0, planted=questions)
        print(f"planted: {len(questions[::10])} questions, {len(shared)} documents")
        _measure(root, "a", "eval")
        _measure(root, "a", "b")


def _texts(seed: int, words: int) -> Iterator[str]:
    generator = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    spelled = np.random.default_rng(9)
    vocabulary = ["".join(spelled.choice(letters, size=spelled.integers(2, 10))) for _ in range(50_000)]
    while True:
        ranks = np.minimum(generator.zipf(1.2, size=(1000, words)), len(vocabulary)) - 1
        yield from (" ".join(vocabulary[rank] for rank in row) for row in ranks)


def _write(path: Path, size: int, seed: int, planted: list[str]) -> list[str]:
    """Writes texts up to a size, and between them the planted ones; returns every hundredth text."""
    chosen, written, waiting = [], 0, list(planted)
    with path.open("w") as file:
        for number, text in enumerate(_texts(seed, DOCUMENT_WORDS)):
            if waiting and (number % 7 == 0 or written >= size):
                text = waiting.pop()
            elif written >= size:
                break
            elif number % 100 == 1:
                chosen.append(text)
            written += file.write(json.dumps({"text": text}) + "\n")
    return chosen


def _measure(root: Path, first: str, second: str) -> None:
    corpora = [Corpus(name, (([root / f"{name}.jsonl"], adapter_named("text")),)) for name in (first, second)]
    wall, cpu = time.perf_counter(), time.process_time()
    found = find_overlap(corpora[0], corpora[1])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    megabytes = sum(corpus.size for corpus in corpora) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    hit = [int((side.shares >= 0.5).sum()) for side in found.sides]
    duplicates = [int(side.duplicates.sum()) for side in found.sides]
    print(
        f"{first} against {second}: {megabytes:.0f} MB in {wall:.1f} s, {cpu:.1f} CPU-s, {megabytes / cpu:.1f} MB per "
        f"CPU-s, {1000 * cpu / megabytes / 60:.1f} CPU-minutes per GB, peak {peak:.2f} GB, {found.passes} passes; "
        f"duplicates {duplicates}, hit by half {hit}"
    )


if __name__ == "__main__":
    main()
