r"""Whether a reply answers rightly: one place for rewards, tests and the verification of samples.

A reply is what a model says to a prompt. What it thinks, up to the last `</think>`, is not scored; a
`<think>` that is never closed leaves nothing to score. The answer stands in the last `\boxed{}` of the
rest: the last one, because people correct themselves; who wants exactly one looks at `Reply.boxed`.

| scorer        | an answer is right if |
|---------------|------------------------|
| exact         | it is the same text, apart from case, white space, a final full stop and `$` or `\text{}` around it |
| number        | it is the same number, exactly: 0.5 = 1/2 = \frac{1}{2} = 5e-1, 1,000 = 1000; `x = 5` counts as 5 |
| choice        | it names the same label: B, (b), "B) Paris", "option B" |
| polynomial    | it has the same coefficients: 3*x**2 + 1 = 1 + 3x^2; complex numbers are polynomials in i |
| reasoning-gym | the scorer of its task gives 1; for tasks with many right answers |

Answers come from models that learn to please a scorer, so nothing here evaluates an answer as code or
lets its size decide the time. Some scorers of reasoning-gym do (`eval`, sympy's `parse_expr`); those in
`SAFE_TASKS` were read and do not.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from data_tools.errors import DataError

SAFE_TASKS = frozenset({"knights_knaves", "palindrome_generation"})
"""Tasks of reasoning-gym whose scorers may see a model's answer. Source: their `score_answer`, 0.1.25."""

LONGEST_ANSWER = 10_000
"""Characters; a longer answer is wrong, and no pattern below has to look at it."""

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_ANSWER_LINE = re.compile(r"^answer:[ \t]*(\S.*)$", re.IGNORECASE | re.MULTILINE)

_WRAPPER = re.compile(r"\$+([^$]*)\$+|\\\((.*)\\\)|\\\[(.*)\\\]|\\(?:text|mathrm|mathbf)\{([^{}]*)\}", re.DOTALL)
_MINUS = dict.fromkeys(map(ord, "−﹣－"), "-")

_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_PLAIN = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})(e[+-]?\d{1,3})?")
_LATEX_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")

_LABEL = re.compile(r"(?:(?:option|choice|answer)[:\s]+)?\(?([a-z])(?:\)|[.:](?=\s|$)|$)(?:\s.*)?", re.DOTALL)

_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
"""White space but that between digits: "3 4" is not 34."""

_FACTORS = r"[a-z](?:\^\d{1,3}(?!\d))?|\d{1,400}(?!\d)(?:\.\d{1,400}(?!\d))?"
_TERM = re.compile(rf"([+-]?)((?:{_FACTORS}|\*)+)")
_FACTOR = re.compile(r"([a-z])(?:\^(\d+))?|([\d.]+)")


@dataclass(frozen=True, slots=True)
class Reply:
    """The parts of a reply.

    Attributes:
        thinking: What was thought, without tags; None where nothing was.
        said: All the rest.
        boxed: What stands in each box of `said`, in order.
    """

    thinking: str | None
    said: str
    boxed: tuple[str, ...]


def read_reply(text: str) -> Reply:
    r"""Takes a reply apart.

    >>> read_reply("<think>\\boxed{1}?</think>So \\boxed{\\frac{1}{2}}.")
    Reply(thinking='\\boxed{1}?', said='So \\boxed{\\frac{1}{2}}.', boxed=('\\frac{1}{2}',))
    """
    thought, closed, rest = text.rpartition("</think>")
    said, opened, unfinished = rest.partition("<think>")
    thinking = (thought if closed else "") + (unfinished if opened else "")
    thinking = thinking.strip().removeprefix("<think>").strip()
    return Reply(thinking if closed or opened else None, said, tuple(_boxes(said)))


def _boxes(text: str) -> list[str]:
    """What stands in each closed box; of a box in a box, what the inner one holds."""
    boxes, at = [], 0
    while opened := _BOX.search(text, at):
        end = _closing_brace(text, opened.end())
        if end is None:
            at = opened.end()
            continue
        content = text[opened.end() : end].strip()
        boxes += _boxes(content) if _BOX.match(content) else [content]
        at = end + 1
    return boxes


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return brace.start()
    return None


def final_answer(text: str, *, needs_box: bool = True) -> str | None:
    r"""The answer of a reply.

    Args:
        text: The reply.
        needs_box: Whether only a box counts; else the last line `Answer: …` does where there is no box.

    Returns:
        The answer as it stands there; None where there is none.

    >>> final_answer("\\boxed{3}? No, \\boxed{4}."), final_answer("Answer: 4")
    ('4', None)
    """
    reply = read_reply(text)
    if reply.boxed:
        return reply.boxed[-1] or None
    lines = [] if needs_box else _ANSWER_LINE.findall(reply.said)
    return str(lines[-1]).strip() if lines else None


def is_right(answer: str | None, truth: str, *, scorer: str, task: Mapping[str, Any] | None = None) -> bool:
    r"""Whether an answer is the true one.

    Args:
        answer: From `final_answer`; None is wrong.
        truth: The ground truth.
        scorer: One of the table above.
        task: For reasoning-gym alone: {family, metadata} of the task, as JSON can hold it.

    Raises:
        DataError: If there is no such scorer, or it cannot read the ground truth.

    >>> is_right("\\frac{1}{2}", "0.5", scorer="number"), is_right("(b)", "B", scorer="choice")
    (True, True)
    """
    if scorer == "reasoning-gym":
        return bool(answer) and len(str(answer)) <= LONGEST_ANSWER and _task_accepts(str(answer), truth, task or {})
    if scorer not in _READERS:
        raise DataError(f"scorer: {scorer!r} is none of {', '.join(sorted([*_READERS, 'reasoning-gym']))}")
    read = _READERS[scorer]
    wanted = read(tidy(truth))
    if wanted is None:
        raise DataError(f"ground truth: {truth!r} is nothing that the scorer {scorer} can read; choose another scorer")
    return answer is not None and len(answer) <= LONGEST_ANSWER and read(tidy(answer)) == wanted


def tidy(text: str) -> str:
    r"""An answer in one spelling: digits and minus signs of ASCII, no case, no markup around it.

    Superscripts stay what they are: 10² is not 102.

    >>> tidy(" $\\text{Ja  Wohl}$. "), tidy("−４٢"), tidy("10²")
    ('ja wohl', '-42', '10²')
    """
    digits = "".join(str(unicodedata.decimal(sign)) if unicodedata.category(sign) == "Nd" else sign for sign in text)
    plain = " ".join(digits.translate(_MINUS).casefold().split())
    while True:
        shorter = plain.removesuffix(".").strip()
        if whole := _WRAPPER.fullmatch(shorter):
            shorter = next(part for part in whole.groups() if part is not None).strip()
        if shorter == plain:
            return plain
        plain = shorter


def _exact(text: str) -> str | None:
    return text or None


def _number(text: str) -> Fraction | None:
    plain = re.sub(r"^[a-z]\s*=|\\[,;! ]", "", _SPACE.sub("", text)).replace("{,}", ",")
    latex = _LATEX_FRACTION.fullmatch(plain)
    over = [f"{latex[1]}{latex[2]}", latex[3]] if latex else plain.split("/")
    parts = [_decimal(part) for part in over]
    if len(parts) == 1:
        return parts[0]
    if len(parts) > 2 or parts[0] is None or not parts[1]:
        return None
    return parts[0] / parts[1]


def _decimal(text: str) -> Fraction | None:
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    # the pattern bounds the exponent: Fraction("1e999999999") would fill the memory
    return Fraction(text) if _PLAIN.fullmatch(text) else None


def _choice(text: str) -> str | None:
    label = _LABEL.fullmatch(text)
    return label[1] if label else None


def _polynomial(text: str) -> dict[str, Fraction] | None:
    """Coefficients that are not 0, by their letters written out: {"": 1, "xx": 3} is 3x^2 + 1."""
    plain = _SPACE.sub("", text).replace("\\cdot", "*").replace("**", "^")
    plain = re.sub(r"\^\{(\d+)\}", r"^\1", plain)
    coefficients: dict[str, Fraction] = {}
    at = 0
    while at < len(plain):
        term = _TERM.match(plain, at)
        if term is None or (at and not term[1]):
            return None
        value, letters = Fraction(f"{term[1]}1"), ""
        for letter, power, number in _FACTOR.findall(term[2]):
            value *= Fraction(number or 1)
            letters += letter * int(power or 1)
        key = "".join(sorted(letters))
        coefficients[key] = coefficients.get(key, Fraction(0)) + value
        at = term.end()
    return {letters: value for letters, value in coefficients.items() if value} if plain else None


_READERS: dict[str, Callable[[str], object]] = {
    "exact": _exact,
    "number": _number,
    "choice": _choice,
    "polynomial": _polynomial,
}
"""What a tidied answer says, None if nothing; equal things are equally right."""

SCORERS = (*_READERS, "reasoning-gym")
"""Names of all scorers."""


def _task_accepts(answer: str, truth: str, task: Mapping[str, Any]) -> bool:
    family = str(task.get("family"))
    if family not in SAFE_TASKS:
        raise DataError(f"task: {family!r}: its scorer may run an answer as code; known ones: {sorted(SAFE_TASKS)}")
    entry = {"question": "", "answer": truth, "metadata": task.get("metadata", {})}
    return bool(_task_scorer(family).score_answer(answer.strip(), entry) == 1.0)


@cache
def _task_scorer(family: str) -> Any:
    return importlib.import_module("reasoning_gym").create_dataset(family, seed=0, size=1)
