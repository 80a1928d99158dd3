"""Writes a sample source: `NAME.jsonl`, `NAME.validation.jsonl` and, last, `NAME.card.json`.

The card says what the files hold and proves that they are finished. Its fields: name, stands_for,
description, licence, schema; seed, scale, versions (what decides the content); rows, text_bytes and
families (rows of each, both files together); left_out (candidates that gave no row, by reason); files
(rows, bytes and sha256 of each).
"""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_tools.atomic_files import beside, only_writer, write_atomically
from data_tools.errors import DataError
from data_tools.progress import Progress
from data_tools.readers import hash_file
from data_tools.samples.base import BASE
from data_tools.samples.ldq import LDQ
from data_tools.samples.rows import SampleSource, Tally
from data_tools.samples.shq import SHQ
from data_tools.split import split_of

SAMPLE_VERSION = "1"
"""Raised when the same seed would give other rows."""

SOURCES: dict[str, SampleSource] = {source.name: source for source in (BASE, LDQ, SHQ)}


@dataclass(frozen=True)
class WrittenSample:
    """A sample on the disk.

    Attributes:
        card: The content of its card.
        was_there: Whether it had been made before.
    """

    card: dict[str, Any]
    was_there: bool

    @property
    def held_out_rows(self) -> int:
        """Rows of the validation file."""
        return int(self.card["files"][f"{self.card['name']}.validation.jsonl"]["rows"])


def write_sample(source: SampleSource, out: Path, *, seed: int, scale: float, progress: Progress) -> WrittenSample:
    """Makes one sample source in a folder, unless the folder already holds it.

    Args:
        source: Which one.
        out: The folder.
        seed: Decides the rows.
        scale: Times the default size.
        progress: Is told of every byte of text.

    Raises:
        SetupError: If the machine lacks what the source is made of.
        DataError: If the folder holds another sample of this name.
    """
    out.mkdir(parents=True, exist_ok=True)
    prefix = out / source.name
    settings = {
        "seed": seed,
        "scale": scale,
        "versions": {"sample": SAMPLE_VERSION, "python": platform.python_version(), **source.versions()},
    }
    with only_writer(prefix):
        if card := _card_there(prefix, settings):
            return WrittenSample(card=card, was_there=True)
        contents, counts = _make(source, seed=seed, wanted_bytes=round(source.default_bytes * scale), progress=progress)
        for suffix, content in contents.items():
            _write_or_refuse(beside(prefix, suffix), content)
        files = {
            f"{source.name}{suffix}": {
                "rows": content.count(b"\n"),
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            for suffix, content in contents.items()
        }
        about = {
            "name": source.name,
            "stands_for": source.stands_for,
            "description": source.description,
            "licence": source.licence,
            "schema": source.schema,
        }
        card = {**about, **settings, **counts, "files": files}
        write_atomically(
            beside(prefix, ".card.json"), orjson.dumps(card, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )
        return WrittenSample(card=card, was_there=False)


def _make(
    source: SampleSource, *, seed: int, wanted_bytes: int, progress: Progress
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Content of the two files, by suffix, and the counts for the card. A sample fits in memory."""
    train, validation = bytearray(), bytearray()
    tally, families, text_bytes = Tally(), Counter[str](), 0
    for row in source.rows(seed, tally):
        content = validation if split_of(row["id"]) == "validation" else train
        content += orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        size = len(source.text(row).encode())
        families[source.family(row)] += 1
        text_bytes += size
        progress.advance(size)
        if text_bytes >= wanted_bytes:
            break
    counts = {
        "rows": families.total(),
        "text_bytes": text_bytes,
        "families": dict(sorted(families.items())),
        "left_out": dict(sorted(tally.left_out.items())),
    }
    return {".jsonl": bytes(train), ".validation.jsonl": bytes(validation)}, counts


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
