"""The `base` sample: English prose and code of the Python that runs it.

Three kinds of documents, all from this interpreter's standard library:

* `topics`: the language reference behind `help("topic")`.
* `docs`: the docstrings of one module as a page, with the signatures they belong to.
* `code`: the source of one module without those docstrings, so that nothing stands in two documents.

Long pages and files become several documents of about `DOCUMENT_CHARACTERS`, cut where a topic has
an empty line and where code starts a definition. Tests, tables of encodings and bundled third-party
code are not read.
"""

from __future__ import annotations

import ast
import itertools
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
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def base_rows(seed: int, tally: Tally) -> Iterator[Row]:
    """Rows {id, text, family}, files and topics in an order drawn from the seed.

    Raises:
        SetupError: If this Python came without its sources.
    """
    units: list[tuple[str, Path | None]] = [(name, None) for name in sorted(_topics())]
    units += [(_module_name(path), path) for path in _source_files()]
    random.Random(seed).shuffle(units)
    for name, path in units:
        if path is None:
            yield from _rows("topics", name, _paragraphs(_topics()[name]), tally)
            continue
        try:
            docs, code = split_module(name, path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, SyntaxError):
            tally.left_out["source that does not parse"] += 1
            continue
        yield from _rows("docs", name, docs, tally)
        yield from _rows("code", name, code, tally)


def split_module(name: str, source: str) -> tuple[list[str], list[str]]:
    """The docstrings of a module, and the rest of it; pieces that documents are made of.

    Args:
        name: Dotted name of the module.
        source: Its source.

    Returns:
        One piece for each docstring, with its signature; and the source without them, in order.

    Raises:
        SyntaxError: If the source is not Python of this version.
    """
    module = ast.parse(source)
    return _doc_entries(name, module), _code_pieces(source, module)


def _rows(family: str, name: str, pieces: list[str], tally: Tally) -> Iterator[Row]:
    number = 0
    for text in _grouped(pieces):
        if len(text) < SHORTEST_CHARACTERS:
            tally.left_out[f"shorter than {SHORTEST_CHARACTERS} characters"] += 1
            continue
        yield {"id": f"base-{family}-{name}-{number}", "text": text, "family": family}
        number += 1


def _grouped(pieces: list[str]) -> Iterator[str]:
    """Consecutive pieces joined up to the length of a document."""
    waiting = ""
    for piece in pieces:
        if waiting and len(waiting) + len(piece) > DOCUMENT_CHARACTERS:
            yield waiting.strip("\n")
            waiting = ""
        waiting += piece
    if waiting.strip():
        yield waiting.strip("\n")


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise SetupError(f"{platform.python_version()}: this Python came without pydoc topics; use another") from None
    return topics


def _paragraphs(text: str) -> list[str]:
    return [f"{paragraph}\n\n" for paragraph in text.split("\n\n")]


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


def _doc_entries(name: str, module: ast.Module) -> list[str]:
    """The docstrings of a module, each under its signature."""
    entries = []
    if said := ast.get_docstring(module):
        entries.append(f"{name}\n\n{said}\n\n")
    stack: list[tuple[str, ast.AST]] = [("", node) for node in reversed(module.body)]
    while stack:
        owner, node = stack.pop()
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        qualified = f"{owner}{node.name}"
        if said := ast.get_docstring(node):
            indented = "\n".join(f"    {line}".rstrip() for line in said.splitlines())
            entries.append(f"{_signature(name, qualified, node)}\n\n{indented}\n\n")
        if isinstance(node, ast.ClassDef):
            stack += [(f"{qualified}.", child) for child in reversed(node.body)]
    return entries


def _signature(module: str, qualified: str, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {module}.{qualified}"
    return f"{module}.{qualified}({ast.unparse(node.args)})"


def _code_pieces(source: str, module: ast.Module) -> list[str]:
    """The source without docstrings, cut before each top-level statement and each method."""
    lines = source.splitlines(keepends=True)
    cuts = {0, *_statement_starts(module)}
    for node in ast.walk(module):
        if isinstance(node, _Documented) and ast.get_docstring(node, clean=False) is not None:
            _remove_docstring(node, lines)
        if isinstance(node, ast.ClassDef) and _characters(node, lines) > DOCUMENT_CHARACTERS:
            cuts.update(_statement_starts(node))
    bounds = [*sorted(cuts), len(lines)]
    pieces = ["".join(lines[start:end]) for start, end in itertools.pairwise(bounds)]
    return [part for piece in pieces for part in _short_enough(piece)]


def _statement_starts(node: ast.Module | ast.ClassDef) -> list[int]:
    """0-based first lines of statements, decorators included."""
    return [
        min([child.lineno, *(decorator.lineno for decorator in getattr(child, "decorator_list", []))]) - 1
        for child in node.body
    ]


def _characters(node: ast.ClassDef, lines: list[str]) -> int:
    return sum(map(len, lines[node.lineno - 1 : node.end_lineno]))


def _remove_docstring(node: _Documented, lines: list[str]) -> None:
    """Blanks the lines of a docstring; a body of nothing else becomes `...`."""
    first = node.body[0]
    start, end = first.lineno - 1, first.end_lineno or first.lineno
    shares_a_line = not lines[start][: first.col_offset].isspace() and first.col_offset > 0
    if shares_a_line or lines[end - 1].encode()[first.end_col_offset or 0 :].strip():
        return  # `def f(): "doc"`: stays in the code
    indent = lines[start][: first.col_offset]
    lines[start:end] = [f"{indent}...\n" if len(node.body) == 1 else ""] + [""] * (end - start - 1)


def _short_enough(piece: str) -> list[str]:
    """One statement, or a long table cut at line ends."""
    if len(piece) <= 2 * DOCUMENT_CHARACTERS:
        return [piece]
    return piece.splitlines(keepends=True)


BASE = SampleSource(
    name="base",
    stands_for="the base corpus of web text, mathematics and code",
    description=(
        "Documentation and source code of the standard library of the Python that made it: pydoc topics, "
        "docstrings by module, and the source without its docstrings."
    ),
    licence="PSF-2.0 (Python Software Foundation License)",
    schema={"id": "str", "text": "str", "family": "topics | docs | code"},
    default_bytes=7_000_000,
    rows=base_rows,
    text=lambda row: str(row["text"]),
    family=lambda row: str(row["family"]),
    versions=dict,
)
