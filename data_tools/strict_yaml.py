"""YAML without its traps, with the line of every key.

Built on PyYAML's events, not on its constructors, because those decide things behind the
writer's back. What differs from PyYAML's `safe_load`:

| written             | safe_load                | here                         |
|---------------------|--------------------------|------------------------------|
| a key twice         | the last wins            | error with both lines        |
| `on`, `no`, `yes`   | True, False, True        | the strings                  |
| `012`, `1:30`       | 10, 90                   | the strings                  |
| `1e-4`              | the string               | 0.0001                       |
| `2026-11-22`        | a date                   | the string                   |
| `*M-`, `&a`, `<<:`  | alias, anchor, merge     | error that says to quote     |
| `!!python/…`, `!x`  | tag                      | error                        |
| two documents       | the first, or an error   | error                        |

Plain scalars follow the core schema of YAML 1.2.2, section 10.3.2, less octal and hexadecimal
integers, infinities (`1e999` too) and NaN, which stay strings. Keys are always strings.
"""

from __future__ import annotations

import copy
import difflib
import functools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml import events

from data_tools.errors import RecipeError

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the top of a document, such as ("data", "blend", 0, "share")."""

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,99})")  # longer ones stay strings: int() refuses 4,300 digits
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_DEEPEST = 50
_HINTS = (
    ("while scanning an alias", 'a value that starts with "*" must be quoted: "*M-"'),
    ("while scanning an anchor", 'a value that starts with "&" must be quoted'),
    ("while scanning a block scalar", 'a value that starts with "|" or ">" must be quoted: "|M"'),
    ("'\\t'", "indent with spaces, not tabs"),
    ("cannot start any token", "quote the value"),
    ("mapping values are not allowed", 'quote a value that holds ": ", or check the indentation'),
)


@dataclass(frozen=True)
class YamlDocument:
    """One YAML file, read.

    Attributes:
        path: The file, as given.
        data: Its top-level mapping: dict, list, str, int, float, bool and None only.
        marks: The 1-based line of each key and list element; the line of `()` is where the mapping starts.
    """

    path: Path
    data: dict[str, Any]
    marks: dict[KeyPath, int]


def load_yaml(path: str | Path) -> YamlDocument:
    """Reads one YAML file.

    Args:
        path: The file; UTF-8.

    Returns:
        The document, whose top level is a mapping.

    Raises:
        RecipeError: All that is wrong with the file, one `file:line: …` each.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_yaml(text, path=path)


def parse_yaml(text: str, *, path: str | Path) -> YamlDocument:
    """Reads YAML text; `path` names it in errors. See `load_yaml`."""
    data, marks = _parsed(text, Path(path))
    return YamlDocument(path=Path(path), data=copy.deepcopy(data), marks=dict(marks))


@functools.lru_cache(maxsize=256)
def _parsed(text: str, path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Data and marks of a text; kept, because the recipes of a study lead to the same few files hundreds of times."""
    reader = _Reader(text, path)
    try:
        data = reader.read()
    except yaml.YAMLError as error:
        raise RecipeError(_syntax_message(path, text, error)) from None
    if reader.errors:
        raise RecipeError("\n".join(reader.errors))
    if not isinstance(data, dict):
        raise RecipeError(f"{path}:{reader.marks.get((), 1)}: the top level must be a mapping of keys to values")
    return data, reader.marks


def parse_scalar(text: str) -> str | int | float | bool | None:
    """The value of a plain or quoted scalar, by the rules of this file; for `--set key=value`.

    >>> parse_scalar("1e-4"), parse_scalar("off"), parse_scalar('"12"'), parse_scalar("*M-")
    (0.0001, 'off', '12', '*M-')
    """
    stripped = text.strip()
    if len(stripped) >= 2 and stripped[0] == stripped[-1] and stripped[0] in "\"'":
        return stripped[1:-1]
    return _resolve(stripped)


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key that `key` was probably meant to be, if any is near.

    >>> nearest("sequence_lenght", ["sequence_length", "seed"])
    'sequence_length'
    """
    matches = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def _resolve(text: str) -> str | int | float | bool | None:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


class _Reader:
    """Builds plain values from PyYAML's events; collects errors that do not stop the reading."""

    def __init__(self, text: str, path: Path) -> None:
        self.path = path
        self.marks: dict[KeyPath, int] = {}
        self.errors: list[str] = []
        self._events: Iterator[events.Event] = yaml.parse(text, Loader=yaml.SafeLoader)

    def read(self) -> Any:
        data: Any = None
        documents = 0
        for event in self._events:
            if not isinstance(event, events.DocumentStartEvent):
                continue
            documents += 1
            if event.version or event.tags:
                self._error(event, "a % directive is not allowed; remove the line")
            if documents == 2:
                self._error(event, "a second document starts here; a file holds one document")
            value = self._value(next(self._events), ())
            data = value if documents == 1 else data
        return data

    def _value(self, event: events.Event, path: KeyPath) -> Any:
        self.marks.setdefault(path, _line(event))
        if isinstance(event, events.AliasEvent):
            self._error(event, f'"*{event.anchor}" is read as an alias; quote a value that starts with "*": "*M-"')
            return None
        assert isinstance(event, events.NodeEvent), f"unexpected YAML event {event!r}"
        self._refuse_anchor_and_tag(event)
        if len(path) > _DEEPEST:
            raise RecipeError(f"{self.path}:{_line(event)}: nested deeper than {_DEEPEST} levels")
        if isinstance(event, events.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, events.SequenceStartEvent):
            return self._sequence(path)
        assert isinstance(event, events.ScalarEvent), f"unexpected YAML event {event!r}"
        is_plain = event.style is None
        return _resolve(event.value) if is_plain else event.value

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), events.MappingEndEvent):
            key = self._key(event, path)
            line = _line(event)
            if key in lines:
                self._error(event, f'key "{key}" stands twice, first on line {lines[key]}; remove one')
            lines.setdefault(key, line)
            self.marks.setdefault((*path, key), line)
            data[key] = self._value(next(self._events), (*path, key))
        return data

    def _sequence(self, path: KeyPath) -> list[Any]:
        data: list[Any] = []
        while not isinstance(event := next(self._events), events.SequenceEndEvent):
            data.append(self._value(event, (*path, len(data))))
        return data

    def _key(self, event: events.Event, path: KeyPath) -> str:
        if not isinstance(event, events.ScalarEvent):
            kind = "an alias" if isinstance(event, events.AliasEvent) else "a list or mapping"
            raise RecipeError(f"{self.path}:{_line(event)}: {kind} cannot be a key; quote it or name a key")
        self._refuse_anchor_and_tag(event)
        if event.value == "<<" and event.style is None:
            self._error(event, 'the merge key "<<" is not allowed; use extends, or write the keys out')
        if not event.value:
            self._error(event, "a key is empty; name it")
        return str(event.value)

    def _refuse_anchor_and_tag(self, event: events.NodeEvent) -> None:
        if event.anchor is not None:
            self._error(event, f'"&{event.anchor}" is read as an anchor; quote a value that starts with "&"')
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._error(event, f'the tag "{tag}" is not allowed; quote a value that starts with "!"')

    def _error(self, event: events.Event, message: str) -> None:
        self.errors.append(f"{self.path}:{_line(event)}: {message}")


def _line(event: events.Event) -> int:
    mark: Any = event.start_mark
    return int(mark.line) + 1


def _syntax_message(path: Path, text: str, error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, int(error.position)) + 1
        return f"{path}:{line}: the character {error.character!r} is not allowed in YAML; remove it"
    mark: Any = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else str(path)
    said = ", ".join(str(part) for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part)
    hint = next((f"; {remedy}" for sign, remedy in _HINTS if sign in said), "")
    return f"{where}: not valid YAML: {said or error}{hint}"
