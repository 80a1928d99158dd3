r"""Chat templates in Hugging Face's form: jinja2, sandboxed, with or without `{% generation %}`.

A template is a program that a stranger wrote, so it runs in jinja2's sandbox, with the filters and
functions that `transformers` gives it, save `strftime_now`: what a template makes of a conversation
must not depend on the day (templates that ask for the date bring a fixed one for its absence).

Text that spells a control token must not become one. A conversation with such text is rendered
protected: a mark is put inside (`<` mark `|im_end|>`), so every control token left whole is the
template's own, and the marks are taken out again. The marks are noncharacters of Unicode; generation
blocks are marked by two control characters that no text has a use for, since those keep a text of one
byte a character. Text that holds any of these is rendered protected too and comes out as it was.

Where the assistant speaks is known by position: by `{% generation %}` blocks; in a template without
them a turn starts where the rendered prompt before it ends, and ends with the last control token of
what the turn adds.

Source: transformers 5.23, `utils/chat_template_utils.py`.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

from data_tools.errors import DataError
from data_tools.readers import BadRecord

_INSIDE, _ESCAPED_INSIDE, _ESCAPED_OPEN, _ESCAPED_CLOSE = map(chr, range(0xFDD0, 0xFDD4))
_OPEN, _CLOSE = "\x81", "\x8d"
_MARKS = re.compile(f"[{_INSIDE}{_OPEN}{_CLOSE}]")
_ESCAPES = {
    _INSIDE: _INSIDE + _ESCAPED_INSIDE,
    _OPEN: _INSIDE + _ESCAPED_OPEN,
    _CLOSE: _INSIDE + _ESCAPED_CLOSE,
}
_UNESCAPES = {escape: mark for mark, escape in _ESCAPES.items()} | {_INSIDE: ""}
_ESCAPED = re.compile(f"{_INSIDE}[{_ESCAPED_INSIDE}{_ESCAPED_OPEN}{_ESCAPED_CLOSE}]?")


def opened_thinking(prompt: str) -> str:
    r"""What a rendered prompt begins of the answer already: a `<think>` at its end, with white space; else nothing.

    >>> opened_thinking("<|im_start|>assistant\n<think>\n"), opened_thinking("<|im_start|>assistant\n")
    ('<think>\n', '')
    """
    _, opened, rest = prompt.rpartition("<think>")
    return opened + rest if opened and not rest.strip() else ""


class TokenFinder:
    """Finds some tokens in text; fast where they are rare."""

    def __init__(self, tokens: Sequence[str]) -> None:
        alike = groupby(sorted(tokens), key=lambda token: token[:2])
        self._starts = [os.path.commonprefix(list(group)) for _, group in alike]  # noqa: RUF071 - of characters
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if tokens else None

    def find(self, text: str) -> list[tuple[int, int]]:
        """Where they stand, [(start, stop)], in order; the longest where several start at one place."""
        if self._pattern is None or not any(start in text for start in self._starts):
            return []
        return [match.span() for match in self._pattern.finditer(text)]


class Rendered(NamedTuple):
    """A conversation as one text.

    Attributes:
        text: With marks; see `plain`.
        spans: What the assistant said, [(start, stop)] in `text`, in order; end-of-turn tokens included.
    """

    text: str
    spans: list[tuple[int, int]]


def plain(text: str) -> str:
    """Rendered text, or a piece of it, without marks."""
    if _INSIDE not in text:
        return text
    return _ESCAPED.sub(lambda match: _UNESCAPES[match[0]], text)


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str, *, control_tokens: Sequence[str], variables: dict[str, str]) -> None:
        """Compiles it.

        Args:
            source: The template.
            control_tokens: What text must not forge.
            variables: More names for the template, such as `bos_token`.

        Raises:
            DataError: If it is no template.
        """
        self.marks_generation = re.search(r"{%-?\s*generation\s*-?%}", source) is not None
        self._control = TokenFinder(control_tokens)
        try:
            self._template = _environment().from_string(source, globals=variables)
            self._template.globals = dict(self._template.globals)  # each rendering copies it; jinja2's map is slow
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"chat template, line {error.lineno}: {error.message}") from None

    def render(self, messages: list[dict[str, Any]], tools: list[Any] | None, *, protects: bool = True) -> Rendered:
        """Renders a conversation.

        Args:
            messages: `{"role", "content"}` each, and `tool_calls` where there are any.
            tools: Definitions of tools.
            protects: Whether control tokens that the conversation itself spells get marks.

        Raises:
            BadRecord: If the template refuses it, or where the assistant speaks cannot be told.
        """
        if protects:
            messages, tools = self._protected(messages), self._protected(tools)
        text = self._render(messages, tools, prompt=False)
        if self.marks_generation:
            return _without_edges(text)
        return Rendered(text, self._spans(text, messages, tools))

    def render_prompt(self, messages: list[dict[str, Any]]) -> str:
        """Renders turns up to where the assistant's next one begins; control tokens that they spell stay as they are.

        Raises:
            BadRecord: If the template refuses it.
        """
        if any(holds_marks(text) for text in strings_of(messages)):
            messages = self._protected(messages)
        text = self._render(messages, None, prompt=True)
        return plain(_without_edges(text).text if self.marks_generation else text)

    def end_of_turn(self) -> str | None:
        """The control token behind an assistant's turn; None where the template writes none.

        A turn of the user follows: some templates end none but the last turn, some only where the next begins.

        Raises:
            DataError: If the template refuses a question and its answer.
        """
        answer = "forty-two"
        turns = [("user", "How much?"), ("assistant", answer), ("user", "Why?")]
        try:
            text = self._render([{"role": role, "content": content} for role, content in turns], None, prompt=False)
        except BadRecord as bad:
            raise DataError(bad.detail) from None
        behind = text.rpartition(answer)[2]
        return next((behind[start:stop] for start, stop in self._control.find(behind)), None)

    def _render(self, messages: list[dict[str, Any]], tools: list[Any] | None, *, prompt: bool) -> str:
        try:
            return str(put_into(self._template, messages, tools, prompt=prompt))
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise BadRecord("template", f"the chat template refuses it: {error}") from None

    def _spans(self, text: str, messages: list[dict[str, Any]], tools: list[Any] | None) -> list[tuple[int, int]]:
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = len(self._prefix(text, messages[:number], tools, prompt=True))
            end = len(text)
            if number + 1 < len(messages):
                end = len(self._prefix(text, messages[: number + 1], tools, prompt=False))
            tokens = self._control.find(text[start:end])
            spans.append((start, start + tokens[-1][1] if tokens else end))
        return spans

    def _prefix(self, text: str, messages: list[dict[str, Any]], tools: list[Any] | None, *, prompt: bool) -> str:
        """What is rendered of the first messages, if the whole starts with it."""
        prefix = self._render(messages, tools, prompt=prompt)
        if not text.startswith(prefix):
            raise BadRecord(
                "template",
                "the chat template rewrites earlier turns, so it must mark the assistant's by {% generation %}",
            )
        return prefix

    def _protected(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._protected_text(value)
        if isinstance(value, dict):
            return {self._protected(key): self._protected(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._protected(item) for item in value]
        return value

    def _protected_text(self, text: str) -> str:
        if not text.isascii() and _MARKS.search(text):
            text = _MARKS.sub(lambda match: _ESCAPES[match[0]], text)
        for start, _ in reversed(self._control.find(text)):
            text = text[: start + 1] + _INSIDE + text[start + 1 :]
        return text


def put_into(
    template: jinja2.Template, messages: list[dict[str, Any]], tools: list[Any] | None, *, prompt: bool
) -> Any:
    """What a template makes of messages."""
    return template.render(messages=messages, tools=tools, documents=None, add_generation_prompt=prompt)


def _without_edges(text: str) -> Rendered:
    before, *blocks = text.split(_OPEN)
    parts, spans, size = [before], [], len(before)
    for block in blocks:
        said, _, rest = block.partition(_CLOSE)
        spans.append((size, size + len(said)))
        size += len(block) - 1
        parts += [said, rest]
    return Rendered("".join(parts), spans)


def strings_of(value: Any) -> Iterator[str]:
    """All strings in some messages or tools, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item)


def holds_marks(text: str) -> bool:
    """Whether text holds a mark of ours, so that it must be rendered protected."""
    return not text.isascii() and any(mark in text for mark in (_INSIDE, _OPEN, _CLOSE))


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`: what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 - of jinja2, where it is no ClassVar

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return self.environment.concat((_OPEN, caller(), _CLOSE))


@functools.cache
def _environment() -> SandboxedEnvironment:
    return prepared(ImmutableSandboxedEnvironment)


def prepared(kind: type[SandboxedEnvironment]) -> SandboxedEnvironment:
    """An environment of a kind, with what chat templates may use."""
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
