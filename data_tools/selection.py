r"""Which records of a source are taken: `--where 'answer_tokens > 4096'`, with `--answer-rule` where it needs one.

    where      = comparison { "and" comparison }
    comparison = field operator number
    field      = answer_tokens | text_tokens
    operator   = > | >= | < | <= | == | !=
    number     = digits, which may hold "_" or "," between them

`answer_tokens` counts the tokens of the answer, encoded alone: the part that the adapter, or else the
answer rule, takes for it; of a conversation the assistant's last turn, its trace of thinking included.
`text_tokens` counts those of the text, without an end-of-document token; of a conversation made by `chat`
all that its template renders. Where nothing marks the answer its length is unknown, and the record is
refused with the reason `no answer`, neither taken nor left out.

An answer rule says where the answer starts in texts that mark none: `after:REGEX` takes all that
follows the first match of a regular expression (Python's `re`) in the text. It is never applied to an
answer that the adapter knows.

The long-answer subset of the paper is `ldq` with `--where 'answer_tokens > 4096'`; with which tokenizer
and which split of questions and answers the authors counted is not stated.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from data_tools.errors import UsageError
from data_tools.readers import BadRecord
from data_tools.records import Document
from data_tools.tokenizer import Tokenizer

Field = Literal["answer_tokens", "text_tokens"]
Lengths = npt.NDArray[np.integer[Any]]
NO_ANSWER = -1
"""Length of an answer that nothing marks, as in `PREFIX.origin`."""

_OPERATORS: dict[str, Callable[[Lengths, int], npt.NDArray[np.bool_]]] = {
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

    def __str__(self) -> str:
        return f"{self.field} {self.operator} {self.number}"


@dataclass(frozen=True)
class Where:
    """A filter of documents: all comparisons must hold."""

    comparisons: tuple[Comparison, ...]

    @classmethod
    def parse(cls, text: str) -> Where:
        """Reads a filter.

        Raises:
            UsageError: If it is not of the form at the top of this file.

        >>> str(Where.parse("answer_tokens>4,096 and text_tokens <= 32_768"))
        'answer_tokens > 4096 and text_tokens <= 32768'
        """
        return cls(tuple(_comparison(part, text) for part in re.split(r"\band\b", text)))

    def __str__(self) -> str:
        return " and ".join(map(str, self.comparisons))

    def select(self, *, text_tokens: Lengths, answer_tokens: Lengths) -> Selected:
        """Which documents of these lengths are taken; whoever encodes them knows the lengths.

        Args:
            text_tokens: [documents] tokens of each text, without an end-of-document token.
            answer_tokens: [documents] tokens of each answer; `NO_ANSWER` where nothing marks it.

        >>> lengths = np.array([9, 2, 9]), np.array([5, 1, -1])
        >>> chosen = Where.parse("answer_tokens > 4").select(text_tokens=lengths[0], answer_tokens=lengths[1])
        >>> chosen.taken.tolist(), chosen.unknown.tolist()
        ([True, False, False], [False, False, True])
        """
        lengths = {"text_tokens": text_tokens, "answer_tokens": answer_tokens}
        taken = np.ones(len(text_tokens), bool)
        unknown = np.zeros(len(text_tokens), bool)
        for comparison in self.comparisons:
            of_field = lengths[comparison.field]
            taken &= _OPERATORS[comparison.operator](of_field, comparison.number)
            unknown |= of_field == NO_ANSWER  # told whatever the other comparisons say
        return Selected(taken & ~unknown, unknown)


@dataclass(frozen=True)
class Selected:
    """What a filter makes of some documents.

    Attributes:
        taken: [documents] whether each is taken.
        unknown: [documents] whether each asks for a length that is not known; such a one is not taken.
    """

    taken: npt.NDArray[np.bool_]
    unknown: npt.NDArray[np.bool_]


def no_answer() -> BadRecord:
    """Why a document of unknown length is refused."""
    return BadRecord("no answer", "answer_tokens is null: nothing marks the answer; give --answer-rule after:REGEX")


def answer_lengths(documents: Sequence[Document], tokenizer: Tokenizer) -> npt.NDArray[np.int32]:
    """Tokens of each document's answer, encoded alone; `NO_ANSWER` where nothing marks it, [documents]."""
    lengths = np.full(len(documents), NO_ANSWER, np.int32)
    answers = {number: said for number, document in enumerate(documents) if (said := document.answer) is not None}
    if answers:
        lengths[list(answers)] = tokenizer.encode_batch(list(answers.values())).lengths
    return lengths


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
