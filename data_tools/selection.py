r"""Which records of a source are taken: `--where 'answer_tokens > 4096'`, with `--answer-rule` where it needs one.

    where      = comparison { "and" comparison }
    comparison = field operator number
    field      = answer_tokens | text_tokens
    operator   = > | >= | < | <= | == | !=
    number     = digits, which may hold "_" or "," between them

`answer_tokens` counts the tokens of the answer: the part that the adapter, or else the answer rule,
takes for it; of a conversation the assistant's last turn, its trace of thinking included. Where nothing
marks the answer its length is unknown, and the record is refused with the reason `no answer`, neither
taken nor left out.

An answer rule says where the answer starts in texts that mark none: `after:REGEX` takes all that
follows the first match of a regular expression (Python's `re`) in the text. It is never applied to an
answer that the adapter knows.

The long-answer subset of the paper is `ldq` with `--where 'answer_tokens > 4096'`; with which tokenizer
and which split of questions and answers the authors counted is not stated.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from data_tools.errors import UsageError
from data_tools.readers import BadRecord
from data_tools.records import Document

Field = Literal["answer_tokens", "text_tokens"]

_OPERATORS: dict[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARISON = re.compile(r"\s*(?P<field>\w+)\s*(?P<operator>>=|<=|==|!=|>|<)\s*(?P<number>\d+(?:[_,]\d+)*)\s*")
_RULE = "after:"


@dataclass(frozen=True)
class Comparison:
    """One condition on a length in tokens."""

    field: Field
    operator: str
    number: int


@dataclass(frozen=True)
class Where:
    """A filter of documents.

    Attributes:
        text: As it was written.
        comparisons: All must hold.
    """

    text: str
    comparisons: tuple[Comparison, ...]

    @classmethod
    def parse(cls, text: str) -> Where:
        """Reads a filter.

        Raises:
            UsageError: If it is not of the form at the top of this file.

        >>> Where.parse("answer_tokens > 4096 and text_tokens <= 32_768").comparisons[1]
        Comparison(field='text_tokens', operator='<=', number=32768)
        """
        return cls(text, tuple(_comparison(part, text) for part in re.split(r"\band\b", text)))

    def takes(self, *, text_tokens: int, answer_tokens: int | None) -> bool:
        """Whether a document of these lengths is taken; whoever encodes it knows them.

        Args:
            text_tokens: Tokens of the text, without an end-of-document token.
            answer_tokens: Tokens of the answer; None where nothing marks it.

        Raises:
            BadRecord: If the answer's length is asked for and not known.
        """
        lengths = {"text_tokens": text_tokens, "answer_tokens": answer_tokens}
        held = [_holds(comparison, lengths[comparison.field]) for comparison in self.comparisons]
        return all(held)  # after all were asked: an unknown length is told whatever the others are


def _comparison(part: str, text: str) -> Comparison:
    match = _COMPARISON.fullmatch(part)
    if not match:
        raise UsageError(
            f"--where: {text!r}: {part.strip()!r} is not of the form FIELD > NUMBER; try 'answer_tokens > 4096'"
        )
    if match["field"] not in get_args(Field):
        raise UsageError(f"--where: {text!r}: no field {match['field']!r}; there are: {', '.join(get_args(Field))}")
    number = int(match["number"].replace(",", "").replace("_", ""))
    return Comparison(match["field"], match["operator"], number)  # type: ignore[arg-type]  # checked above


def _holds(comparison: Comparison, length: int | None) -> bool:
    if length is None:
        raise BadRecord("no answer", "answer_tokens is null: nothing marks the answer; give --answer-rule after:REGEX")
    return _OPERATORS[comparison.operator](length, comparison.number)


@dataclass(frozen=True)
class AnswerRule:
    """Where the answer starts in texts that do not mark it.

    Attributes:
        text: As it was written.
        start: The answer follows its first match.
    """

    text: str
    start: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> AnswerRule:
        """Reads a rule.

        Raises:
            UsageError: If it is not `after:REGEX`.
        """
        if not text.startswith(_RULE) or text == _RULE:
            raise UsageError(f"--answer-rule: {text!r} is not of the form after:REGEX; try 'after: output: '")
        try:
            return cls(text, re.compile(text.removeprefix(_RULE)))
        except re.error as error:
            raise UsageError(f"--answer-rule: {text!r}: no regular expression: {error}") from None

    def applied(self, document: Document) -> Document:
        """The document with the answer that is known, else with what follows the first match, else with none.

        >>> AnswerRule.parse("after: output: ").applied(Document("a", "input: 1 + 1? output: 2")).answer
        '2'
        """
        match = None if document.answer is not None else self.start.search(document.text)
        return replace(document, answer=document.text[match.end() :]) if match else document
