"""A report in the form that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from data_tools.atomic_files import write_atomically
from megatron_ext.study.page.html import page_html
from megatron_ext.study.page.markdown import page_markdown
from megatron_ext.study.page.tidy import tidy_csv
from megatron_ext.study.report.content import Report


def _json(report: Report) -> str:
    return report.model_dump_json(indent=1) + "\n"


FORMATS: Mapping[str, Callable[[Report], str]] = MappingProxyType(
    {"html": page_html, "md": page_markdown, "csv": tidy_csv, "json": _json}
)
"""Makers of texts, by name, which is also the ending of a file."""


def format_of(output: Path | None, asked: str | None) -> str:
    """The form: as asked, else by the file's ending, else html.

    >>> format_of(Path("a.md"), None), format_of(None, None), format_of(Path("a.txt"), "csv")
    ('md', 'html', 'csv')
    """
    ending = output.suffix.removeprefix(".") if output is not None else ""
    return asked or (ending if ending in FORMATS else "html")


def write_report(report: Report, output: Path, form: str) -> int:
    """Writes a report whole or not at all; gives its size in bytes."""
    content = FORMATS[form](report).encode()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, content)
    return len(content)
