"""The `base` sample: English prose and code of the Python that runs it.

Two kinds of documents, both from this interpreter's standard library: `topics`, the language reference
behind `help("topic")`, and `code`, the modules with their docstrings. Long ones become several documents
of about `DOCUMENT_CHARACTERS`, cut at empty lines. Tests, tables of encodings and bundled third-party
code are not read.
"""

from __future__ import annotations

import platform
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data_tools.errors import SetupError
from data_tools.samples.rows import Row, SampleSource, Tally

DOCUMENT_CHARACTERS = 6_000
SHORTEST_CHARACTERS = 80

_NOT_READ = frozenset(
    {
        "test", "tests", "idlelib", "turtledemo", "lib2to3", "ensurepip", "encodings", "pydoc_data",
        "site-packages", "dist-packages", "__pycache__",
    }
)  # fmt: skip


def base_rows(part: str, seed: int, tally: Tally) -> Iterator[Row]:
    """Rows {id, text, family}, files and topics in an order drawn from the seed.

    Args:
        part: The whole library is one part.
        seed: Decides the order.
        tally: Counts what is left out.

    Raises:
        SetupError: If this Python came without its sources.
    """
    topics = _topics()
    units: list[tuple[str, Path | None]] = [(name, None) for name in sorted(topics)]
    units += [(_module_name(path), path) for path in _source_files()]
    random.Random(seed).shuffle(units)
    for name, path in units:
        family = "code" if path else "topics"
        try:
            text = path.read_text(encoding="utf-8") if path else topics[name]
        except UnicodeDecodeError:
            tally.left_out["source that is not UTF-8"] += 1
            continue
        for number, document in enumerate(documents_of(text)):
            if len(document) < SHORTEST_CHARACTERS:
                tally.left_out[f"shorter than {SHORTEST_CHARACTERS} characters"] += 1
                continue
            yield {"id": f"base-{family}-{name}-{number}", "text": document, "family": family}


def documents_of(text: str) -> list[str]:
    """A long text as documents: paragraphs together up to their length, longer paragraphs cut at line ends."""
    documents = [""]
    for paragraph in text.split("\n\n"):
        pieces = [f"{paragraph}\n\n"] if len(paragraph) <= DOCUMENT_CHARACTERS else f"{paragraph}\n".splitlines(True)
        for piece in pieces:
            if documents[-1] and len(documents[-1]) + len(piece) > DOCUMENT_CHARACTERS:
                documents.append("")
            documents[-1] += piece
    return [document.strip("\n") for document in documents if document.strip()]


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise SetupError(f"{platform.python_version()}: this Python came without pydoc topics; use another") from None
    return topics


def _source_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(root.rglob("*.py")) if not _is_left_out(path.relative_to(root))]
    if not files:
        raise SetupError(f"{root}: this Python came without the sources of its standard library; use another")
    return files


def _is_left_out(path: Path) -> bool:
    # config-* and _sysconfigdata* describe the machine that built this Python
    return bool(_NOT_READ & set(path.parts)) or path.parts[0].startswith(("config-", "_sysconfigdata"))


def _module_name(path: Path) -> str:
    relative = path.relative_to(sysconfig.get_path("stdlib")).with_suffix("")
    return ".".join(relative.parts).removesuffix(".__init__")


BASE = SampleSource(
    name="base",
    stands_for="the base corpus of web text, mathematics and code",
    description="Language reference and source code of the standard library of the Python that made it.",
    licence="PSF-2.0 (Python Software Foundation License)",
    schema={"id": "str", "text": "str", "family": "topics | code"},
    parts=("library",),
    num_rows={"small": 1_500, "full": None},
    row_bytes=4_500,
    make=base_rows,
    text=lambda row: str(row["text"]),
    family=lambda row: str(row["family"]),
    style=lambda row: "no reasoning",
    domain=lambda row: "code" if row["family"] == "code" else "general",
    versions=dict,
)
