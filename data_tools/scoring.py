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
| math-verify   | it is the same text, or the same mathematics: \sqrt{8} = 2\sqrt{2}, x(x+1) = x^2+x |
| reasoning-gym | the scorer of its task gives 1; for tasks with many right answers |

Answers come from models that learn to please a scorer, so nothing here evaluates an answer as code, and
only math-verify lets an answer decide the time: it belongs into a process that can be ended
(`scoring_server.py`). Some scorers of reasoning-gym evaluate answers (`eval`, sympy's `parse_expr`), and no
limit of time makes that safe: those in `SAFE_TASKS` were read and do not, all others are refused everywhere.
"""

from __future__ import annotations

import importlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from data_tools.errors import DataError, SetupError

SAFE_TASKS = frozenset({"knights_knaves", "palindrome_generation"})
"""Tasks of reasoning-gym whose scorers may see a model's answer. Source: their `score_answer`, 0.1.25."""

LONGEST_ANSWER = 10_000
"""Characters; a longer answer is wrong, and no pattern below has to look at it."""

_BRACE = re.compile(r"(?P<box>\\boxed\s*\{)|\\(?!\\boxed\s*\{).|[{}]", re.DOTALL)
"""What opens or closes, or is a brace that only shows; of `\\\\boxed{` the last five letters are a box."""
_ANSWER_LINE = re.compile(r"^answer:[ \t]*(\S.*)$", re.IGNORECASE | re.MULTILINE)

_WRAPPER = re.compile(r"\$+([^$]*)\$+|\\\((.*)\\\)|\\\[(.*)\\\]|\\(?:text|mathrm|mathbf)\{([^{}]*)\}", re.DOTALL)
_MINUS = dict.fromkeys(map(ord, "−﹣－"), "-")

_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_PLAIN = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})(e[+-]?\d{1,3})?")
_LATEX_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")

_LABEL = re.compile(r"(?:(?:option|choice|answer)[:\s]+)?\(?([a-z])(?:\)|[.:](?=\s|$)|$)(?:\s.*)?", re.DOTALL)

_LONE_LABEL = re.compile(r"\(?[A-Ja-j]\)?")

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
        said: All the rest; nothing where the last thinking was not closed.
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
    said = "" if opened else said  # it was not done with thinking, so what it said before is no answer
    return Reply(thinking if closed or opened else None, said, tuple(_boxes(said)))


def _boxes(text: str) -> list[str]:
    r"""What stands in each closed box, in order; of a box that begins with a box, what the inner ones hold.

    Read in one pass: a reply may open a million boxes.

    >>> _boxes("\\boxed{1} \\boxed{\\boxed{2}} \\boxed{3 and \\boxed{4}} \\boxed{5 \\boxed{6}")
    ['1', '2', '3 and \\boxed{4}', '6']
    """
    unclosed: list[tuple[int, int] | None] = []  # of each open brace the places of its box and content
    closed: list[tuple[int, int, int]] = []  # the same, and where the box ends
    for brace in _BRACE.finditer(text):
        if brace["box"]:
            unclosed.append(brace.span())
        elif brace[0] == "{":
            unclosed.append(None)
        elif brace[0] == "}" and unclosed and (opened := unclosed.pop()) is not None:
            closed.append((*opened, brace.start()))
    closed.sort()
    boxes, shown_until = [], 0
    for (start, content, end), (inner, _, _) in itertools.pairwise([*closed, (len(text), 0, 0)]):
        # a box within one that is shown is part of it; one that begins with a box gives way to what it holds
        if start >= shown_until and (inner >= end or text[content:inner].strip()):
            boxes.append(text[content:end].strip())
            shown_until = end
    return boxes


def is_well_formed(text: str) -> bool:
    r"""Whether a reply thinks once, in its beginning, and then gives one answer in a box.

    Source: CrossThink (arXiv 2504.13941), whose format is `<think>…</think>` and `\boxed{}`; that both come once
    and in this order, and that neither is empty, is ours.

    >>> is_well_formed("<think>1 + 1</think> It is \\boxed{2}."), is_well_formed("It is \\boxed{2}.")
    (True, False)
    """
    before, opened, rest = text.partition("<think>")
    thinking, closed, said = rest.partition("</think>")
    if before.strip() or not opened or not closed or not thinking.strip():
        return False
    has_more_tags = "<think>" in rest or "</think>" in said
    boxes = _boxes(said)
    return not has_more_tags and len(boxes) == 1 and bool(boxes[0])


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
    check_truth(truth, scorer=scorer, task=task)
    if not answer or len(answer) > LONGEST_ANSWER:
        return False
    if scorer == "reasoning-gym":
        return _task_accepts(answer, truth, task or {})
    if scorer == "math-verify":
        return tidy(answer) == tidy(truth) or _is_same_mathematics(answer, truth)
    read = _READERS[scorer]
    return read(tidy(answer)) == read(tidy(truth))


def check_truth(truth: str, *, scorer: str, task: Mapping[str, Any] | None = None) -> None:
    """Refuses a ground truth that no answer could meet, whatever it says.

    Args:
        truth: The ground truth.
        scorer: One of the table above.
        task: For reasoning-gym alone: {family, metadata} of the task.

    Raises:
        DataError: If there is no such scorer, or it cannot read the ground truth.
        SetupError: A library is not installed.
    """
    if scorer == "math-verify":
        from data_tools.math_scoring import require_installed

        require_installed()
    if scorer not in SCORERS:
        raise DataError(f"scorer: {scorer!r} is none of {', '.join(sorted(SCORERS))}")
    if scorer == "reasoning-gym":
        family = (task or {}).get("family")
        if family not in SAFE_TASKS:
            raise DataError(f"task: {family!r}: its scorer may run an answer as code; known ones: {sorted(SAFE_TASKS)}")
        prepare(scorer, task=task)
        _require_whole_task(truth, task or {})
        if _accepts_nonsense(truth, task or {}):
            raise DataError(
                f"ground truth: {truth!r} is no answer to a task {family}: its scorer would take any for it"
            )
    elif _READERS.get(scorer, _exact)(tidy(truth)) is None:
        raise DataError(f"ground truth: {truth!r} is nothing that the scorer {scorer} can read; choose another scorer")


def prepare(scorer: str, *, task: Mapping[str, Any] | None = None) -> None:
    """Imports the libraries of a scorer, which may take seconds; later calls of `is_right` take none.

    Args:
        scorer: One of the table above.
        task: For reasoning-gym alone: {family, metadata} of the task.

    Raises:
        SetupError: A library is not installed.
    """
    if scorer == "math-verify":
        from data_tools.math_scoring import load

        load()
    elif scorer == "reasoning-gym" and (task or {}).get("family") in SAFE_TASKS:
        try:
            _task_scorer(str((task or {})["family"]))
        except ModuleNotFoundError as error:
            raise SetupError(
                f"the scorer reasoning-gym cannot be used: {error}; "
                "install it with: pip install 'megatron-ext[samples]'"
            ) from None


def scorer_of(row: Mapping[str, Any], *, default: str) -> str:
    """The scorer of a prompt in the schema of Nemotron-CrossThink.

    >>> scorer_of({"reward_model": {"ground_truth": "(B)"}}, default="number")
    'choice'

    Args:
        row: The prompt; one that names a scorer in `meta_data.scorer` has that one.
        default: Of those whose truth is no lone label of a multiple choice.
    """
    about = row.get("meta_data")
    named = about.get("scorer") if isinstance(about, dict) else None
    is_label = bool(_LONE_LABEL.fullmatch(row["reward_model"]["ground_truth"].strip()))
    return str(named) if named else "choice" if is_label else default


def tidy(text: str) -> str:
    r"""An answer in one spelling: digits and minus signs of ASCII, no case, no markup around it.

    Superscripts stay what they are: 10² is not 102.

    >>> tidy(" $\\text{Ja  Wohl}$. "), tidy("−４٢"), tidy("10²")
    ('ja wohl', '-42', '10²')
    """
    return _unwrapped(" ".join(_in_ascii(text).casefold().split()))


def _in_ascii(text: str) -> str:
    """The same text with digits and minus signs of ASCII."""
    digits = "".join(str(unicodedata.decimal(sign)) if unicodedata.category(sign) == "Nd" else sign for sign in text)
    return digits.translate(_MINUS)


def _unwrapped(plain: str) -> str:
    """The same text without markup around it."""
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

SCORERS = (*_READERS, "math-verify", "reasoning-gym")
"""Names of all scorers."""


def _is_same_mathematics(answer: str, truth: str) -> bool:
    from data_tools.math_scoring import is_same_mathematics  # sympy takes a second

    return is_same_mathematics(*(_unwrapped(_in_ascii(text).strip()) for text in (answer, truth)))


def _task_accepts(answer: str, truth: str, task: Mapping[str, Any]) -> bool:
    entry = {"question": "", "answer": truth, "metadata": task.get("metadata", {})}
    return bool(_task_scorer(str(task.get("family"))).score_answer(answer.strip(), entry) == 1.0)


def _require_whole_task(truth: str, task: Mapping[str, Any]) -> None:
    """Refuses a task whose scorer cannot look even at the truth."""
    try:
        _task_accepts(truth, truth, task)
    except Exception as error:
        raise DataError(
            f"task: {task.get('family')}: its scorer raises {type(error).__name__}: {error}, of the ground truth "
            f"{truth!r} already; give the task the metadata that reasoning-gym made it with"
        ) from None


def _accepts_nonsense(truth: str, task: Mapping[str, Any]) -> bool:
    """Whether a scorer finds nothing in the truth, and so no difference to what says nothing."""
    try:
        return _task_accepts("?", truth, task)
    except Exception:  # whatever it is, it is raised again where an answer is scored, and counted there
        return False


@cache
def _task_scorer(family: str) -> Any:
    return importlib.import_module("reasoning_gym").create_dataset(family, seed=0, size=1)
