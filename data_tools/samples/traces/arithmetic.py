"""Traces of whole numbers: sums, products, divisors, primes, bases."""

from __future__ import annotations

import re

from data_tools.samples.traces.paper import add_signed, divide, multiply
from data_tools.samples.traces.trace import Trace, found

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def chain_sum(question: str) -> Trace:
    """`… problem: 478 + 718 - 740 =`: a running total, then the same by groups as a check."""
    expression = found(r"problem: (.+) =$", question)[1]
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


def product(question: str) -> Trace:
    """`… multiplication: 478 * 718. …`: partial products, then casting out nines as a check."""
    match = found(r"multiplication: (\d+) \* (\d+)\.", question)
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


def greatest_common_divisor(question: str) -> Trace:
    """`… of these numbers: 15456, 64938. …`: Euclid's algorithm, each remainder by long division."""
    numbers = _numbers(question)
    divisor = numbers[0]
    lines = ["I use Euclid's algorithm: gcd(a, b) = gcd(b, a mod b), until the remainder is 0."]
    for number in numbers[1:]:
        more, divisor = _euclid(divisor, number)
        lines += more
    lines.append("Check that it divides every number.")
    for number in numbers:
        quotient, rest = divmod(number, divisor)
        assert rest == 0, f"{divisor} does not divide {number}"
        lines.append(f"  {number} = {divisor} x {quotient}.")
    return Trace(tuple(lines), str(divisor))


def _numbers(question: str) -> list[int]:
    return [int(number) for number in found(r"numbers: ([\d, ]*\d)", question)[1].split(", ")]


def _euclid(a: int, b: int) -> tuple[list[str], int]:
    a, b = max(a, b), min(a, b)
    lines = [f"Take gcd({a}, {b})."]
    while b:
        working, remainder = divide(a, b)
        lines += [f"Divide {a} by {b}.", *working.lines]
        a, b = b, remainder
    return [*lines, f"The remainder is 0, so the greatest common divisor here is {a}."], a


def least_common_multiple(question: str) -> Trace:
    """`… of these numbers: 76, 70`: a x b / gcd(a, b), one number after the other."""
    numbers = _numbers(question)
    multiple = numbers[0]
    lines = ["I use lcm(a, b) = a / gcd(a, b) x b, one number after the other."]
    for number in numbers[1:]:
        more, divisor = _euclid(multiple, number)
        quotient, _ = divide(multiple, divisor)
        lines += [*more, f"Divide {multiple} by {divisor}.", *quotient.lines]
        lines.append(f"Multiply {quotient.result} by {number}.")
        working = multiply(quotient.result, number)
        lines += [*working.lines, f"  The multiple is now {working.result}."]
        multiple = working.result
    lines.append("Check that every number divides it.")
    for number in numbers:
        quotient, rest = divide(multiple, number)
        assert rest == 0, f"{number} does not divide {multiple}"
        lines += quotient.lines
    return Trace(tuple(lines), str(multiple))


def prime_factors(question: str) -> Trace:
    """`… factorization of 4641. …`: trial division by rising primes, then the product as a check."""
    number = int(found(r"factorization of (\d+)\.", question)[1])
    rest, divisor = number, 2
    factors: list[int] = []
    lines = [f"I divide {number} by primes from 2 on, until the square of the prime is larger than what is left."]
    while divisor * divisor <= rest:
        working, remainder = divide(rest, divisor)
        if remainder:
            lines.append(f"{divisor} does not divide {rest}: the remainder is {remainder}.")
            divisor = next(prime for prime in range(divisor + 1, rest + 2) if _is_prime(prime))
            continue
        lines += [f"{divisor} divides {rest}:", *working.lines]
        factors.append(divisor)
        rest = working.result
    if rest > 1:
        lines.append(f"{divisor} x {divisor} = {divisor * divisor} is larger than {rest}, so {rest} is prime.")
        factors.append(rest)
    lines.append("Check by multiplying the factors.")
    total = factors[0]
    for factor in factors[1:]:
        lines.append(f"  {total} x {factor} = {total * factor}")
        total *= factor
    assert total == number, f"the factors of {number} multiply to {total}"
    return Trace((*lines, f"  The product is {total}, as it must be."), " × ".join(map(str, factors)))


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def base_conversion(question: str) -> Trace:
    """`… base-11 number 201 to base-10`: to base 10 digit by digit, to the other by division, then back."""
    match = found(r"convert the (\S+) number (\w+) to (\S+)$", question)
    written, (source, target) = match[2], (_base(match[group]) for group in (1, 3))
    lines, value = _to_ten(written, source)
    result = str(value)
    if target != 10:
        lines.append(f"Write {value} in base {target}: divide by {target} until the quotient is 0.")
        rest, result = value, ""
        while rest:
            quotient, remainder = divmod(rest, target)
            lines.append(f"  {rest} = {quotient} x {target} + {remainder}{_as_digit(remainder)}")
            rest, result = quotient, _DIGITS[remainder] + result
        lines.append(f"The remainders from the last to the first: {result}.")
        lines.append("Check by going back.")
        more, back = _to_ten(result, target)
        assert back == value, f"{result} in base {target} is {back}, not {value}"
        lines += [*more, f"  That is {value} again."]
    return Trace(tuple(lines), result)


def _base(name: str) -> int:
    """The base of `binary`, `hexadecimal`, `base-7`."""
    return {"binary": 2, "hexadecimal": 16}.get(name) or int(name.removeprefix("base-"))


def _as_digit(value: int) -> str:
    return f", written {_DIGITS[value]}" if value > 9 else ""


def _to_ten(written: str, base: int) -> tuple[list[str], int]:
    lines = [f"Read {written} in base {base} from the left: multiply by {base}, add the next digit."]
    value = 0
    for digit in written:
        ten = _DIGITS.index(digit)
        said = f"{digit} = {ten}, " if ten > 9 else ""
        lines.append(f"  {said}{value} x {base} + {ten} = {value * base + ten}")
        value = value * base + ten
    return [*lines, f"So {written} in base {base} is {value} in base 10."], value
