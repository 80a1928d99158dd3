r"""Shapes of conversations: who speaks after whom, and the text that a template puts around what they say.

Most templates put out what is said without looking at it. Such a template is rendered once for a shape,
with stand-ins, and what is said takes their places in every conversation of that shape: some twenty times
less work than to render it again.

That a template does not look is proved by running it, for each shape, on values that are no text: they
can be put out, stripped as a whole, and joined with text; conditions learn of them that they are text, and
not empty. Whatever else a template does with one ends the proof, for then its course could depend on what
is said: a comparison, a length, a part, a filter, an output that is read again. Such shapes, conversations
with tools and those with an empty turn are rendered one by one, and so are all that come after the first
`MOST_SHAPES` shapes.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import jinja2.nodes
from jinja2.nativetypes import NativeCodeGenerator
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

from data_tools.chat_template import ChatTemplate, Rendered, prepared, put_into

MOST_SHAPES = 1_000
_NAME, _BLANK = chr(0xFDD4), "\x1c"
_STAND_IN = re.compile(f"({_BLANK}?){_NAME}([0-9]+){_NAME}({_BLANK}?)")
_KINDS = frozenset(["defined", "undefined", "none", "string", "mapping", "number", "boolean", "iterable", "sequence"])
"""Tests whose answer is the same for every text."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a template makes of all conversations of one shape.

    Attributes:
        parts: Text of the template and room for what is said, in turns; the text comes first.
        said: For each room, the number of the turn, and whether the template strips it.
        spans: As `Rendered.spans`; each edge is a part and the characters after its start.
    """

    parts: list[str]
    said: list[tuple[int, bool]]
    spans: list[tuple[int, int, int, int]]

    def filled(self, contents: Sequence[str]) -> Rendered:
        """A conversation.

        Args:
            contents: [turns] what is said, none of it empty.
        """
        parts = self.parts.copy()
        parts[1::2] = [contents[number].strip() if strips else contents[number] for number, strips in self.said]
        starts = list(accumulate(map(len, parts), initial=0))
        spans = [(starts[first] + a, starts[last] + b) for first, a, last, b in self.spans]
        return Rendered("".join(parts), spans)


class Shapes:
    """The shapes that a template was seen with."""

    def __init__(self, source: str, *, control_tokens: Sequence[str], variables: dict[str, str]) -> None:
        """Compiles the template; the arguments are those of `ChatTemplate`."""
        self._template = _ProvedTemplate(source, control_tokens=control_tokens, variables=variables)
        self._known: dict[tuple[str, ...], Shape | None] = {}

    def of(self, roles: tuple[str, ...]) -> Shape | None:
        """The shape of conversations in which these speak, None where they must be rendered one by one."""
        if roles not in self._known:
            if len(self._known) >= MOST_SHAPES:
                return None
            self._known[roles] = self._learned(roles)
        return self._known[roles]

    def _learned(self, roles: tuple[str, ...]) -> Shape | None:
        stand_ins = [f"{_BLANK}{_NAME}{number}{_NAME}{_BLANK}" for number in range(len(roles))]
        messages = [{"role": role, "content": said} for role, said in zip(roles, stand_ins, strict=True)]
        try:
            rendered = self._template.render(messages, None, protects=False)
        except (_LookedAtError, Exception):  # rendered by itself, a conversation says what is wrong with it
            return None
        found = list(_STAND_IN.finditer(rendered.text))
        starts = [0, *chain.from_iterable(match.span() for match in found)]

        def place(edge: int) -> tuple[int, int]:
            part = bisect_right(starts, edge) - 1
            return part, edge - starts[part]

        return Shape(
            parts=[rendered.text[a:b] for a, b in pairwise([*starts, len(rendered.text)])],
            said=[(int(match[2]), not match[1]) for match in found],
            spans=[(*place(start), *place(stop)) for start, stop in rendered.spans],
        )


class _ProvedTemplate(ChatTemplate):
    """Renders only what it can prove to be put out without a look."""

    def __init__(self, source: str, *, control_tokens: Sequence[str], variables: dict[str, str]) -> None:
        super().__init__(source, control_tokens=control_tokens, variables=variables)
        environment = _proving_environment()
        self._proof = environment.from_string(source, globals=variables)
        self._escapes = environment.parse(source).find(jinja2.nodes.EvalContextModifier) is not None

    def _render(self, messages: list[dict[str, Any]], tools: list[Any] | None, *, prompt: bool) -> str:
        if self._escapes:
            raise _LookedAtError
        said = [message | {"content": _Said(is_content=True)} for message in messages]
        put_into(self._proof, said, tools, prompt=prompt)
        return super()._render(messages, tools, prompt=prompt)


class _LookedAtError(BaseException):
    """A template looked at what is said; no `Exception`, since jinja2 makes False of some of those."""


class _Said:
    """What somebody says, or text with it."""

    __slots__ = ("_is_content",)

    def __init__(self, *, is_content: bool) -> None:
        self._is_content = is_content

    def __add__(self, other: object) -> _Said:
        if type(other) not in (str, _Said):  # Markup would change it
            raise _LookedAtError
        return _Said(is_content=False)

    __radd__ = __add__

    def __bool__(self) -> bool:
        if not self._is_content:  # what was stripped may be empty
            raise _LookedAtError
        return True

    def strip(self) -> _Said:
        """As that of a string; of what was stripped or joined it would leave no edges to find."""
        if not self._is_content:
            raise _LookedAtError
        return _Said(is_content=False)


def _look(*_: object) -> None:
    raise _LookedAtError


for _name in ("eq", "ge", "getattr", "getitem", "gt", "hash", "index", "iter", "le", "len", "lt", "repr", "str"):
    setattr(_Said, f"__{_name}__", _look)


def _joined(parts: Iterable[Any]) -> Any:
    values = list(parts)
    if any(isinstance(value, _Said) for value in values):
        return _Said(is_content=False)
    return "".join(map(str, values))


class _ProvingEnvironment(ImmutableSandboxedEnvironment):
    """Hands values on as they are, where others make text of all that is put out."""

    code_generator_class = NativeCodeGenerator
    concat = staticmethod(_joined)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """What stands under a name; what is said is not to choose it."""
        if isinstance(argument, _Said):
            raise _LookedAtError
        return super().getitem(obj, argument)


@functools.cache
def _proving_environment() -> SandboxedEnvironment:
    environment = prepared(_ProvingEnvironment)
    filters, tests = environment.filters, environment.tests
    trim, default = filters["trim"], filters["default"]  # which asks for no more than a condition does
    filters |= {name: _guarded(function) for name, function in filters.items()} | {"default": default, "d": default}
    filters["trim"] = lambda value, *chars: value.strip(*chars) if isinstance(value, _Said) else trim(value, *chars)
    tests |= {name: _guarded(test, instead="said" if name in _KINDS else None) for name, test in tests.items()}
    filters["random"] = functools.wraps(filters["random"])(lambda *_: _look())  # other text each time, as that:
    environment.globals["lipsum"] = _look
    return environment


def _guarded(function: Any, *, instead: str | None = None) -> Callable[..., Any]:
    """A filter or test that takes nothing that is said, or, `instead`, takes this for it."""

    @functools.wraps(function)
    def guarded(*args: Any, **options: Any) -> Any:
        if any(isinstance(value, _Said) for value in (*args, *options.values())):
            if instead is None:
                raise _LookedAtError
            args = tuple(instead if isinstance(value, _Said) else value for value in args)
        return function(*args, **options)

    return guarded
