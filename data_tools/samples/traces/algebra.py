"""Traces of algebra: linear equations and systems, complex numbers, products of polynomials."""

from __future__ import annotations

import re

from data_tools.samples.traces.paper import add_signed, divide_signed, multiply_signed
from data_tools.samples.traces.trace import NoSingleAnswer, Trace, found


def linear_equation(question: str) -> Trace:
    """`… 56 - 98*e = -1218`: the constant to the right, a long division, then a substitution."""
    match = found(r"([-+*a-z0-9 ]+) = (-?\d+)$", question)
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
    lines += [*division, f"Check: put {name} = {value} into {left}."]
    product = multiply_signed(coefficient, value)
    lines += product.lines
    total = product.result
    if constant:
        working = add_signed(total, constant)
        lines += working.lines
        total = working.result
    assert total == right, f"{name} = {value} gives {total}, not {right}"
    return Trace((*lines, f"  The left side is {total}, equal to the right side {right}."), str(value))


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
    working = divide_signed(moved, coefficient)
    return working.result, [
        f"Divide both sides by {coefficient}.",
        *working.lines,
        f"So {name} = {working.result}.",
    ]


def linear_system(question: str) -> Trace:
    """`… 3*x + 4*y = 10, 2*x - y = 3 …`: y is eliminated, x found, then y, then both put in."""
    equations = re.findall(r"(-?\d+)\*x ([+-]) (\d+)\*y = (-?\d+)", question)
    assert len(equations) == 2, f"not two equations: {question!r}"
    (a, b, c), (d, e, f) = [(int(x), int(sign + y), int(right)) for x, sign, y, right in equations]
    lines = [
        *(f"({number}) {x}*x {sign} {y}*y = {right}" for number, (x, sign, y, right) in enumerate(equations, start=1)),
        f"To get rid of y, multiply (1) by {e} and (2) by {b}, then subtract.",
    ]
    products = []
    for number, factor in ((a, e), (d, b), (c, e), (f, b)):
        working = multiply_signed(number, factor)
        lines += working.lines
        products.append(working.result)
    x_one, x_two, right_one, right_two = products
    lines.append(f"The coefficient of x: {x_one} - {_braced(x_two)}.")
    coefficient = add_signed(x_one, -x_two)
    lines += [*coefficient.lines, f"The right side: {right_one} - {_braced(right_two)}."]
    right = add_signed(right_one, -right_two)
    lines += [*right.lines, f"This leaves {_term(coefficient.result, 'x')} = {right.result}."]
    x, division = _divided(right.result, coefficient.result, "x")
    lines += [*division, f"Put x = {x} into (1)."]
    known = multiply_signed(a, x)
    rest = add_signed(c, -known.result)
    lines += [*known.lines, f"  {b}*y = {c} - {_braced(known.result)}.", *rest.lines]
    y, division = _divided(rest.result, b, "y")
    lines += [*division, f"Check (2) with x = {x} and y = {y}."]
    terms = [multiply_signed(d, x), multiply_signed(e, y)]
    total = add_signed(terms[0].result, terms[1].result)
    assert total.result == f, f"x = {x}, y = {y} gives {total.result}, not {f}"
    lines += [*terms[0].lines, *terms[1].lines, *total.lines, f"  The left side is {f}, equal to the right side."]
    return Trace(tuple(lines), f"x = {x}, y = {y}")


def complex_arithmetic(question: str) -> Trace:
    """`… (7.0 - 6.0i) + (1.0 + 9.0i)`: part by part; a product as four products, checked by its size."""
    match = found(r"\(([^()]+)\) ([-+×]) \(([^()]+)\)$", question)
    (a, b), (c, d) = _parts(match[1]), _parts(match[3])
    if match[2] in "+-":
        sign = 1 if match[2] == "+" else -1
        lines = [f"I {'add' if sign > 0 else 'subtract'} the real parts and the imaginary parts."]
        real, imaginary = add_signed(a, sign * c), add_signed(b, sign * d)
        lines += [f"Real: {a} {match[2]} {_braced(c)}.", *real.lines]
        lines += [f"Imaginary: {b} {match[2]} {_braced(d)}.", *imaginary.lines]
        back = (real.result - sign * c, imaginary.result - sign * d)
        assert back == (a, b), f"going back gives {back}"
        lines.append(f"Check by going back: {_complex(real.result, imaginary.result)} leads back to {_complex(a, b)}.")
        return Trace(tuple(lines), _complex(real.result, imaginary.result))
    lines = ["(a + bi)(c + di) = (ac - bd) + (ad + bc)i.", f"Here a = {a}, b = {b}, c = {c}, d = {d}."]
    results = []
    for name, left, right in (("ac", a, c), ("bd", b, d), ("ad", a, d), ("bc", b, c)):
        working = multiply_signed(left, right)
        lines += [f"{name} = {left} x {_braced(right)}.", *working.lines]
        results.append(working.result)
    real, imaginary = add_signed(results[0], -results[1]), add_signed(results[2], results[3])
    lines += [f"Real: {results[0]} - {_braced(results[1])}.", *real.lines]
    lines += [f"Imaginary: {results[2]} + {_braced(results[3])}.", *imaginary.lines]
    sizes = [left * left + right * right for left, right in ((a, b), (c, d), (real.result, imaginary.result))]
    assert sizes[0] * sizes[1] == sizes[2], "the squared sizes do not multiply"
    lines.append("Check: the squared size of a product is the product of the squared sizes.")
    lines.append(f"  {sizes[0]} x {sizes[1]} = {sizes[2]}, and the product has {sizes[2]} too.")
    return Trace(tuple(lines), _complex(real.result, imaginary.result))


def _parts(written: str) -> tuple[int, int]:
    """The real and the imaginary part; a part that is 0 is not written.

    >>> _parts("7.0 - 6.0i"), _parts("-6.00i"), _parts("5.00")
    ((7, -6), (0, -6), (5, 0))
    """
    *real, last = written.replace(" - ", " + -").split(" + ")
    if not last.endswith("i"):
        return int(float(last)), 0
    return int(float(real[0])) if real else 0, int(float(last[:-1]))


def _braced(number: int) -> str:
    return f"({number})" if number < 0 else str(number)


def _complex(real: int, imaginary: int) -> str:
    return f"{real} {'-' if imaginary < 0 else '+'} {abs(imaginary)}i"


def polynomial_product(question: str) -> Trace:
    """`… (3*x**2 - 5*x + 1)*(7*x - 2)`: term by term, like powers together, checked at x = 2."""
    match = found(r"\(([^()]+)\)\*\(([^()]+)\)", question)
    left, right = _coefficients(match[1]), _coefficients(match[2])
    lines = [f"I multiply each term of {match[1]} by each term of {match[2]}."]
    collected: dict[int, list[int]] = {}
    for power, coefficient in left.items():
        for other, factor in right.items():
            working = multiply_signed(coefficient, factor)
            lines += [f"{_power(coefficient, power)} times {_power(factor, other)}:", *working.lines]
            collected.setdefault(power + other, []).append(working.result)
    product: dict[int, int] = {}
    for power in sorted(collected, reverse=True):
        total, *others = collected[power]
        lines.append(f"Terms with {_power(1, power) if power else 'no x'}: {', '.join(map(str, collected[power]))}.")
        for other in others:
            working = add_signed(total, other)
            lines += working.lines
            total = working.result
        product[power] = total
    answer = written_polynomial(product)
    values = [sum(value * 2**power for power, value in terms.items()) for terms in (left, right, product)]
    assert values[0] * values[1] == values[2], f"at x = 2 the product is {values[2]}, not {values[0]} x {values[1]}"
    lines.append("Check at x = 2.")
    lines.append(f"  The factors are {values[0]} and {values[1]}, their product is {values[0] * values[1]}.")
    return Trace((*lines, f"  {answer} is {values[2]} there, the same."), answer)


def _coefficients(text: str) -> dict[int, int]:
    """Coefficients by power of x.

    >>> _coefficients("-3*x**2 + x - 5")
    {2: -3, 1: 1, 0: -5}
    """
    terms = re.findall(r"([+-]?)(\d*)\*?(x?)(?:\*\*(\d+))?", text.replace(" ", ""))
    return {int(power or bool(x)): int(f"{sign}{number or 1}") for sign, number, x, power in terms if number or x}


def _power(coefficient: int, power: int) -> str:
    name = "x" if power == 1 else f"x**{power}"
    return str(coefficient) if not power else _term(coefficient, name)


def written_polynomial(terms: dict[int, int]) -> str:
    """A polynomial as questions and answers write it, highest power first.

    >>> written_polynomial({2: -3, 1: 0, 0: 5})
    '-3*x**2 + 5'
    """
    written = [_power(value, power) for power, value in sorted(terms.items(), reverse=True) if value]
    return " + ".join(written).replace("+ -", "- ") or "0"
