"""Step-by-step traces for the few task families of the `shq` sample.

A trace is written from the question alone; the task's stored answer is never looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from data_tools.samples.arithmetic import add_signed, divide, multiply


class NoSingleAnswer(ValueError):
    """A question that any answer would satisfy, such as `0 = 0`."""


@dataclass(frozen=True)
class Trace:
    """A worked-out question.

    Attributes:
        lines: The working, a line each.
        answer: What it came to, as the task writes answers.
    """

    lines: tuple[str, ...]
    answer: str

    @property
    def difficulty(self) -> int:
        """Length of the working as a rating from 1 to 10, the scale of OpenThoughts3."""
        return max(1, min(10, len(self.lines) // 6))


TraceWriter = Callable[[str], Trace]


def chain_sum_trace(question: str) -> Trace:
    """`… problem: 478 + 718 - 740 =`: a running total, then the same by groups as a check."""
    expression = _found(r"problem: (.+) =$", question)[1]
    terms = [int(sign + number) for sign, number in re.findall(r"([+-]?) ?(\d+)", expression)]
    lines = [f"I go through {expression} from left to right and keep a running total, which starts at {terms[0]}."]
    total = terms[0]
    for number, term in enumerate(terms[1:], start=1):
        sign = "-" if term < 0 else "+"
        lines.append(f"Step {number}: {total} {sign} {abs(term)}.")
        working = add_signed(total, term)
        lines += working.lines
        total = working.result
        lines.append(f"  The running total is now {total}.")
    return Trace((*lines, *_grouped_check(terms, total)), str(total))


def _grouped_check(terms: list[int], total: int) -> list[str]:
    added = [term for term in terms if term >= 0]
    taken = [-term for term in terms if term < 0]
    if not taken:
        return [f"All terms are added, so the total must be at least the largest term, {max(added)}: {total} is."]
    difference = sum(added) - sum(taken)
    assert difference == total, f"running total {total} and groups {difference} disagree"
    return [
        "Check by groups.",
        f"  Added: {' + '.join(map(str, added))} = {sum(added)}.",
        f"  Taken away: {' + '.join(map(str, taken))} = {sum(taken)}.",
        f"  {sum(added)} - {sum(taken)} = {difference}, the same as the running total.",
    ]


def products_trace(question: str) -> Trace:
    """`… multiplication: 478 * 718. …`: partial products, then casting out nines as a check."""
    match = _found(r"multiplication: (\d+) \* (\d+)\.", question)
    a, b = int(match[1]), int(match[2])
    working = multiply(a, b)
    nines = [_digital_root(number) for number in (a, b, working.result)]
    expected = _digital_root(nines[0] * nines[1])
    assert expected == nines[2], f"casting out nines disagrees for {a} x {b}"
    lines = (
        f"I multiply {a} by each digit of {b} and add the partial products.",
        *working.lines,
        "Check by casting out nines.",
        f"  Digit sums reduce {a} to {nines[0]}, {b} to {nines[1]} and {working.result} to {nines[2]}.",
        f"  {nines[0]} x {nines[1]} = {nines[0] * nines[1]} reduces to {expected}, which agrees.",
    )
    return Trace(lines, str(working.result))


def _digital_root(number: int) -> int:
    """A digit sum, taken until one digit is left.

    >>> _digital_root(343204)
    7
    """
    while number > 9:
        number = sum(int(digit) for digit in str(number))
    return number


def gcd_trace(question: str) -> Trace:
    """`… of these numbers: 15456, 64938. …`: Euclid's algorithm, each remainder by long division."""
    numbers = [int(number) for number in _found(r"numbers: ([\d, ]+)\.", question)[1].split(", ")]
    divisor = numbers[0]
    lines = ["I use Euclid's algorithm: gcd(a, b) = gcd(b, a mod b), until the remainder is 0."]
    for number in numbers[1:]:
        a, b = max(divisor, number), min(divisor, number)
        lines.append(f"Take gcd({a}, {b}).")
        while b:
            working, remainder = divide(a, b)
            lines += [f"Divide {a} by {b}.", *working.lines]
            a, b = b, remainder
        lines.append(f"The remainder is 0, so the greatest common divisor here is {a}.")
        divisor = a
    lines.append("Check that it divides every number.")
    for number in numbers:
        quotient, rest = divmod(number, divisor)
        assert rest == 0, f"{divisor} does not divide {number}"
        lines.append(f"  {number} = {divisor} x {quotient}.")
    return Trace(tuple(lines), str(divisor))


def equation_trace(question: str) -> Trace:
    """`… 56 - 98*e = -1218`: the constant to the right, a long division, then a substitution."""
    match = _found(r"([-+*a-z0-9 ]+) = (-?\d+)$", question)
    left, right = match[1].split(": ")[-1].strip(), int(match[2])
    name, coefficient, constant = _linear(left)
    lines = [f"The equation is {left} = {right}; the unknown is {name}."]
    moved = right
    if constant:
        verb, side = ("Subtract", "from") if constant > 0 else ("Add", "to")
        lines.append(f"{verb} {abs(constant)} {side} both sides.")
        working = add_signed(right, -constant)
        lines += working.lines
        moved = working.result
    lines.append(f"This leaves {_term(coefficient, name)} = {moved}.")
    value, division = _divided(moved, coefficient, name)
    lines += division
    lines += _substituted(coefficient, constant, value, right, left=left, name=name)
    return Trace(tuple(lines), str(value))


def _linear(side: str) -> tuple[str, int, int]:
    """The unknown, its coefficient and the constant of one side.

    >>> _linear("56 - 98*e"), _linear("-x + 3"), _linear("7*b")
    (('e', -98, 56), ('x', -1, 3), ('b', 7, 0))
    """
    name, coefficient, constant = "", 0, 0
    for sign, number, letter in re.findall(r"([+-]?)(?:(\d+)\*?)?([a-z]?)", side.replace(" ", "")):
        if not number and not letter:
            continue
        value = int(sign + (number or "1"))
        if letter:
            assert not name, f"more than one unknown term in {side!r}"
            name, coefficient = letter, value
        else:
            constant += value
    if not coefficient:
        raise NoSingleAnswer(f"no unknown is left in {side!r}")
    return name, coefficient, constant


def _term(coefficient: int, name: str) -> str:
    return {1: name, -1: f"-{name}"}.get(coefficient, f"{coefficient}*{name}")


def _divided(moved: int, coefficient: int, name: str) -> tuple[int, list[str]]:
    if coefficient == 1:
        return moved, [f"So {name} = {moved}."]
    lines = [f"Divide both sides by {coefficient}."]
    working, remainder = divide(abs(moved), abs(coefficient))
    assert remainder == 0, f"{moved} is no multiple of {coefficient}"
    lines += working.lines
    value = working.result if (moved < 0) == (coefficient < 0) else -working.result
    if moved < 0 or coefficient < 0:
        signs = "the same sign, so the quotient is positive" if value >= 0 else "different signs, so it is negative"
        lines.append(f"  {moved} and {coefficient} have {signs}.")
    return value, [*lines, f"So {name} = {value}."]


def _substituted(coefficient: int, constant: int, value: int, right: int, *, left: str, name: str) -> list[str]:
    working = multiply(abs(coefficient), abs(value))
    product = working.result if (coefficient < 0) == (value < 0) else -working.result
    lines = [f"Check: put {name} = {value} into {left}.", *working.lines]
    lines.append(f"  {coefficient} x {value} = {product}.")
    if constant:
        total = add_signed(product, constant)
        lines += total.lines
        product = total.result
    assert product == right, f"{name} = {value} gives {product}, not {right}"
    return [*lines, f"  The left side is {product}, equal to the right side {right}."]


def _found(pattern: str, question: str) -> re.Match[str]:
    match = re.search(pattern, question.strip())
    assert match is not None, f"the question has another form than {pattern!r}: {question!r}"
    return match


TRACE_WRITERS: dict[str, TraceWriter] = {
    "chain_sum": chain_sum_trace,
    "gcd": gcd_trace,
    "products": products_trace,
    "simple_equations": equation_trace,
}
"""Families of reasoning-gym that have a trace writer."""
