"""A corpus for tokenizers of what the machine holds: prose, code and worked reasoning, no network.

    python tests/benchmarks/corpus.py OUT.jsonl --bytes 210000000

Prose: texts, manuals and docstrings below the given folders; code: the Python sources of this interpreter
and its packages; reasoning: sums worked out digit by digit. Documents are deduplicated, cut at
`LONGEST` characters and shuffled with a fixed seed; half of them are written with \\u escapes, as many
corpora are. The corpus differs from machine to machine: compare ratios of one run only.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LONGEST = 400_000
SHORTEST = 200
PROSE_FOLDERS = ("/usr/share/doc", "/usr/share/man/man1", "/usr/share/man/man7", "/usr/share/perl", "/usr/share/info")
PROSE_SUFFIXES = (".txt", ".md", ".rst", ".gz", ".html", "copyright", ".pod", "README")
SHARES = {"prose": 0.4, "code": 0.3, "reasoning": 0.3}


def _read(path: Path) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode()
    except (OSError, EOFError, UnicodeDecodeError):
        return ""


def _prose(code: list[Path]) -> Iterator[str]:
    for folder in map(Path, PROSE_FOLDERS):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name.endswith(PROSE_SUFFIXES):
                yield _read(path)
    for path in code:
        if path.suffix in (".md", ".rst", ".txt", ".html", ".pyi"):
            yield _read(path)
        elif path.suffix == ".py":
            yield "\n\n".join(_docstrings(_read(path)))


def _docstrings(source: str) -> Iterator[str]:
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (said := ast.get_docstring(node)):
            yield said


def _code(files: list[Path]) -> Iterator[str]:
    return (_read(path) for path in files if path.suffix in (".py", ".h", ".hpp", ".cu", ".cuh", ".js", ".c"))


def _reasoning() -> Iterator[str]:
    """Long additions and multiplications, worked out digit by digit, in words that vary."""
    generator = random.Random(1)
    while True:
        yield "\n\n".join(_worked_sum(generator) for _ in range(generator.randint(1, 12)))


def _worked_sum(generator: random.Random) -> str:
    a, b = generator.randrange(10**9), generator.randrange(10**9)
    first = generator.choice(["Let me add", "We need", "First I take", "Consider", "The sum asked for is"])
    then = generator.choice(["so", "hence", "which gives", "and therefore", "that is"])
    lines, carry, total = [f"{first} {a} + {b}."], 0, 0
    for place, (x, y) in enumerate(zip(f"{a:09d}"[::-1], f"{b:09d}"[::-1], strict=True)):
        value = int(x) + int(y) + carry
        lines.append(f"Place {place}: {x} + {y} + {carry} = {value}, {then} digit {value % 10}, carry {value // 10}.")
        total, carry = total + (value % 10) * 10**place, value // 10
    return "\n".join([*lines, f"Altogether {total + carry * 10**9}."])


def _documents(size: int) -> Iterator[str]:
    roots = [Path(sysconfig.get_paths()["stdlib"]), Path(sysconfig.get_paths()["purelib"])]
    files = [path for root in roots for path in sorted(root.rglob("*")) if path.is_file()]
    random.Random(0).shuffle(files)
    kinds = {"prose": _prose(files), "code": _code(files), "reasoning": _reasoning()}
    known: set[bytes] = set()
    for kind, texts in kinds.items():
        room = SHARES[kind] * size
        for text in texts:
            text = text[:LONGEST]
            digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
            if digest in known or (kind != "reasoning" and len(text) < SHORTEST):
                continue
            known.add(digest)
            yield text
            room -= len(text)
            if room < 0:
                break


def write_corpus(path: Path, size: int) -> int:
    """Writes about `size` bytes of JSONL; returns the documents."""
    documents = list(_documents(size))
    random.Random(0).shuffle(documents)
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(documents):
            file.write(json.dumps({"text": text}, ensure_ascii=number % 2 == 0) + "\n")
    return len(documents)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bytes", type=int, default=210_000_000)
    options = parser.parse_args()
    documents = write_corpus(options.out, options.bytes)
    print(f"{options.out}: {documents:,} documents, {options.out.stat().st_size:,} bytes")
