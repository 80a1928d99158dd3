"""Writes a sample source: `NAME.jsonl`, `NAME.validation.jsonl` and, last, `NAME.card.json`.

The card says what the files hold and proves that they are finished:

| field       | meaning |
|-------------|---------|
| name, stands_for, description, licence, schema | what it is |
| seed, size, scale, versions | what decides its bytes: of this writer, Python, and the libraries that made it |
| rows, text_bytes | of both files together, their UTF-8 text without JSON |
| families, domains, styles | rows of each; a style is how much reasoning a row shows |
| shares      | of the rows and of the text that each style has: of `ldq` the share of bare answers |
| left_out    | candidates that gave no row, by reason |
| files       | rows, bytes and sha256 of each |

Sets of prompts are held out as a whole and have no validation file.
"""

from __future__ import annotations

import hashlib
import itertools
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from data_tools.atomic_files import beside, only_writer, write_atomically
from data_tools.errors import DataError
from data_tools.progress import Progress
from data_tools.readers import hash_file
from data_tools.samples.base import BASE
from data_tools.samples.last_digit import DIGIT, DIGIT_EVAL, FORM
from data_tools.samples.ldq import LDQ
from data_tools.samples.mini import MINI
from data_tools.samples.prompts import EVAL, RL
from data_tools.samples.rows import Row, SampleSource, Tally
from data_tools.samples.shq import SHQ
from data_tools.split import split_of

SAMPLE_VERSION = "2"
"""Raised when the same seed would give other rows."""

DEMO_SOURCES = (BASE, LDQ, SHQ, EVAL, RL, DIGIT, DIGIT_EVAL, FORM)
"""What is made where nothing is named."""
SOURCES: dict[str, SampleSource] = {source.name: source for source in (*DEMO_SOURCES, *MINI)}

Part = tuple[list[Row], Tally]
RunParts = Callable[[Callable[[str], Part], Iterable[str]], Iterator[Part]]
"""`map`, or that of several processes."""


@dataclass(frozen=True)
class Request:
    """What decides a sample.

    Attributes:
        seed: Decides the rows.
        size: small or full.
        scale: Times the rows of that size.
    """

    seed: int = 0
    size: str = "small"
    scale: float = 1.0

    def num_rows(self, source: SampleSource) -> int | None:
        """Most rows of a part; None: all there are."""
        wanted = source.num_rows[self.size]
        return None if wanted is None else max(1, round(wanted * self.scale))


@dataclass(frozen=True)
class WrittenSample:
    """A sample on the disk.

    Attributes:
        card: The content of its card.
        was_there: Whether it had been made before.
    """

    card: dict[str, Any]
    was_there: bool

    def short_families(self, request: Request) -> dict[str, int]:
        """Rows of the families that have fewer than was asked for."""
        source = SOURCES[self.card["name"]]
        wanted = request.num_rows(source) or 0
        rows = self.card["families"] if len(source.parts) > 1 else {source.parts[0]: self.card["rows"]}
        return {part: rows.get(part, 0) for part in source.parts if rows.get(part, 0) < wanted}

    @property
    def held_out_rows(self) -> int:
        """Rows that are not to be trained on."""
        name = self.card["name"]
        if not SOURCES[name].is_split:
            return int(self.card["rows"])
        return int(self.card["files"][f"{name}.validation.jsonl"]["rows"])


def write_sample(
    source: SampleSource, out: Path, request: Request, *, run_parts: RunParts = map, progress: Progress
) -> WrittenSample:
    """Makes one sample source in a folder, unless the folder already holds it.

    Args:
        source: Which one.
        out: The folder.
        request: What decides it.
        run_parts: Makes the parts, in order.
        progress: Is told of every byte of text.

    Raises:
        SetupError: If the machine lacks what the source is made of.
        DataError: If the folder holds another sample of this name.
    """
    out.mkdir(parents=True, exist_ok=True)
    prefix = out / source.name
    versions = {"sample": SAMPLE_VERSION, "python": platform.python_version(), **source.versions()}
    settings = {"seed": request.seed, "size": request.size, "scale": request.scale, "versions": versions}
    with only_writer(prefix):
        if card := _card_there(prefix, settings):
            return WrittenSample(card=card, was_there=True)
        make = partial(make_part, source.name, request=request)
        contents = _Contents(source)
        parts = []
        for rows, tally in run_parts(make, source.parts):
            parts.append(rows)
            contents.left_out += tally.left_out
            progress.advance(sum(len(source.text(row)) for row in rows))
        for row in itertools.chain.from_iterable(itertools.zip_longest(*parts)):  # the families in turn
            if row is not None:
                contents.add(row)
        about = ("name", "stands_for", "description", "licence", "schema")
        card = {**{key: getattr(source, key) for key in about}, **settings, **contents.facts()}
        for suffix, content in contents.files.items():
            _write_or_refuse(beside(prefix, suffix), bytes(content))
        write_atomically(
            beside(prefix, ".card.json"), orjson.dumps(card, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )
        return WrittenSample(card=card, was_there=False)


def make_part(name: str, part: str, *, request: Request) -> Part:
    """The rows of one part of a source, and what was left out; the work of one process."""
    source, tally = SOURCES[name], Tally()
    return list(itertools.islice(source.make(part, request.seed, tally), request.num_rows(source))), tally


@dataclass
class _Contents:
    """The files of a sample, in memory: the largest has some 60 MB."""

    source: SampleSource
    files: dict[str, bytearray] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    families: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    styles: Counter[str] = field(default_factory=Counter)
    style_bytes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        suffixes = (".jsonl", ".validation.jsonl") if self.source.is_split else (".jsonl",)
        self.files = {suffix: bytearray() for suffix in suffixes}

    def add(self, row: Row) -> None:
        held_out = self.source.is_split and split_of(row["id"]) == "validation"
        self.files[".validation.jsonl" if held_out else ".jsonl"] += orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        self.families[self.source.family(row)] += 1
        self.domains[self.source.domain(row)] += 1
        style = self.source.style(row)
        self.styles[style] += 1
        self.style_bytes[style] += len(self.source.text(row).encode())

    def facts(self) -> dict[str, Any]:
        """What the card says of the content."""
        rows, text_bytes = self.styles.total(), self.style_bytes.total()
        return {
            "rows": rows,
            "text_bytes": text_bytes,
            "families": dict(sorted(self.families.items())),
            "domains": dict(sorted(self.domains.items())),
            "styles": dict(sorted(self.styles.items())),
            "shares": {
                style: {"rows": round(count / rows, 3), "text": round(self.style_bytes[style] / text_bytes, 3)}
                for style, count in sorted(self.styles.items())
            },
            "left_out": dict(sorted(self.left_out.items())),
            "files": {
                f"{self.source.name}{suffix}": {
                    "rows": content.count(b"\n"),
                    "bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
                for suffix, content in self.files.items()
            },
        }


def _card_there(prefix: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The card of this very sample, if the folder holds it whole."""
    path = beside(prefix, ".card.json")
    if not path.exists():
        return None
    remedy = f"choose another --out, or remove {prefix}.*"
    try:
        card: dict[str, Any] = orjson.loads(path.read_bytes())
        for name, wanted in settings.items():
            if card[name] != wanted:
                raise DataError(
                    f"{path}: holds another sample: {name}: it has {card[name]}, asked for {wanted}; {remedy}"
                )
        for name, said in card["files"].items():
            if hash_file(path.parent / name).sha256 != said["sha256"]:
                raise DataError(f"{path.parent / name}: was changed after it was made; {remedy}")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: not a card of this version; {remedy}") from None
    return card


def _write_or_refuse(path: Path, content: bytes) -> None:
    """Writes a file; one that is there without a card may be replaced only by the same bytes."""
    if path.exists() and path.read_bytes() != content:
        raise DataError(f"{path}: holds something else and has no card; choose another --out, or remove it")
    write_atomically(path, content)
