"""Arithmetic as it is done on paper, a digit at a time, with every step written out.

Each function returns the lines of the working and the result that the working reached. The results
come from single-digit steps, never from Python's own operators on the whole numbers, so that a
scorer that checks a result checks the working; only small products are known by heart.
"""

from __future__ import annotations

from dataclasses import dataclass

_PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands", "millions", "ten millions")


@dataclass(frozen=True)
class Working:
    """Lines of a calculation on paper, and what it came to."""

    lines: tuple[str, ...]
    result: int


def _place(position: int) -> str:
    return _PLACES[position] if position < len(_PLACES) else f"10^{position}"


def _digits(number: int) -> list[int]:
    """Digits from the ones upwards.

    >>> _digits(305)
    [5, 0, 3]
    """
    assert number >= 0, "digits are of numbers that are not negative"
    return [int(digit) for digit in reversed(str(number))]


def _number(digits: list[int]) -> int:
    return int("".join(str(digit) for digit in reversed(digits)))


def add(a: int, b: int) -> Working:
    """The sum in columns; both 0 or more.

    >>> add(47, 85).result
    132
    """
    left, right = _digits(a), _digits(b)
    lines, digits, carry = [], [], 0
    for position in range(max(len(left), len(right))):
        terms = [row[position] for row in (left, right) if position < len(row)]
        total = sum(terms) + carry
        if len(terms) == 1 and not carry:
            lines.append(f"  {_place(position)}: bring down {total}")
        else:
            written = " + ".join(str(term) for term in terms) + (f" + {carry} carried" if carry else "")
            moved = f", carry {total // 10}" if total > 9 else ""
            lines.append(f"  {_place(position)}: {written} = {total}, write {total % 10}{moved}")
        digits.append(total % 10)
        carry = total // 10
    if carry:
        digits.append(carry)
        lines.append(f"  {_place(len(digits) - 1)}: write the carried {carry}")
    result = _number(digits)
    return Working((*lines, f"  So {a} + {b} = {result}."), result)


def subtract(a: int, b: int) -> Working:
    """The difference in columns, with borrowing; 0 <= b <= a.

    >>> subtract(103, 58).result
    45
    """
    assert 0 <= b <= a, "columns subtract the smaller from the larger"
    left, right = _digits(a), _digits(b)
    lines, digits, borrowed = [], [], 0
    for position, top in enumerate(left):
        bottom = right[position] if position < len(right) else 0
        available = top - borrowed
        said = f"{top} - {borrowed} borrowed = {available}, " if borrowed else ""
        borrowed = 1 if available < bottom else 0
        if borrowed:
            said += f"borrow 10, {available + 10} - {bottom} = {available + 10 - bottom}"
        else:
            said += f"{available} - {bottom} = {available - bottom}"
        digits.append(available + 10 * borrowed - bottom)
        lines.append(f"  {_place(position)}: {said}")
    result = _number(digits)
    return Working((*lines, f"  So {a} - {b} = {result}."), result)


def add_signed(a: int, b: int) -> Working:
    """The sum for any signs, by adding or subtracting the sizes.

    >>> add_signed(20, -56).result
    -36
    """
    if (a < 0) == (b < 0):
        size = add(abs(a), abs(b))
        sign = -1 if a < 0 else 1
        note = ("  Both are negative, so the sizes add and the sign stays.",) if a < 0 else ()
        return Working((*note, *size.lines), sign * size.result)
    larger, smaller = (a, b) if abs(a) >= abs(b) else (b, a)
    size = subtract(abs(larger), abs(smaller))
    sign = -1 if larger < 0 else 1
    note = (
        ("  The negative number is larger in size, so the result is negative.",) if larger < 0 and size.result else ()
    )
    return Working((*note, *size.lines), sign * size.result)


def multiply_by_digit(a: int, digit: int) -> Working:
    """A number times one digit.

    >>> multiply_by_digit(478, 7).result
    3346
    """
    assert 0 <= digit <= 9, "one digit at a time"
    lines, digits, carry = [], [], 0
    for position, top in enumerate(_digits(a)):
        total = top * digit + carry
        added = f" + {carry} carried = {total}" if carry else ""
        digits.append(total % 10)
        carry = total // 10
        moved = f", carry {carry}" if carry else ""
        lines.append(f"  {_place(position)}: {top} x {digit} = {top * digit}{added}, write {total % 10}{moved}")
    while carry:
        digits.append(carry % 10)
        lines.append(f"  {_place(len(digits) - 1)}: write the carried {carry % 10}")
        carry //= 10
    result = _number(digits)
    return Working((*lines, f"  So {a} x {digit} = {result}."), result)


def multiply(a: int, b: int) -> Working:
    """The product by partial products; both 0 or more.

    >>> multiply(478, 718).result
    343204
    """
    lines: list[str] = []
    total: int | None = None
    for position, digit in enumerate(_digits(b)):
        if not digit:
            lines.append(f"The {_place(position)} digit of {b} is 0: it adds nothing.")
            continue
        lines.append(f"The {_place(position)} digit of {b} is {digit}: {a} x {digit}.")
        row = multiply_by_digit(a, digit)
        partial = int(f"{row.result}{'0' * position}")
        lines += [*row.lines, *((f"  Shifted by {position}: {partial}.",) if position else ())]
        if total is None:
            total = partial
            continue
        lines.append(f"Add the partial products {total} and {partial}.")
        sum_ = add(total, partial)
        lines += sum_.lines
        total = sum_.result
    return Working(tuple(lines), total or 0)


def divide(a: int, b: int) -> tuple[Working, int]:
    """Quotient of a / b by long division, with its working, and the remainder; 0 <= a, 0 < b.

    >>> working, remainder = divide(64938, 15456)
    >>> working.result, remainder
    (4, 3114)
    """
    assert min(a, b - 1) >= 0, "long division is of sizes"
    lines, quotient, rest = [], "", 0
    for digit in str(a):
        brought = rest * 10 + int(digit)
        times = next(times for times in range(9, -1, -1) if times * b <= brought)
        rest = brought - times * b
        if quotient or times:  # leading zeros of the quotient are not written
            said = "once" if times == 1 else f"{times} times"
            lines.append(f"  {b} goes into {brought} {said}: {times} x {b} = {times * b}, remainder {rest}")
            quotient += str(times)
    result = int(quotient or "0")
    return Working((*lines, f"  So {a} = {result} x {b} + {rest}."), result), rest


def multiply_signed(a: int, b: int) -> Working:
    """The product for any signs.

    >>> multiply_signed(-12, 3).result
    -36
    """
    if min(abs(a), abs(b)) < 2 or max(abs(a), abs(b)) < 10:  # known by heart
        return Working((f"  {a} x {f'({b})' if b < 0 else b} = {a * b}",), a * b)
    size = multiply(max(abs(a), abs(b)), min(abs(a), abs(b)))
    result = size.result if (a < 0) == (b < 0) else -size.result
    sign = ("  The signs are the same, so the product is positive.",) if a < 0 and b < 0 else ()
    if result < 0:
        sign = ("  The signs differ, so the product is negative.",)
    return Working((*size.lines, *sign, f"  {a} x {f'({b})' if b < 0 else b} = {result}."), result)


def divide_signed(a: int, b: int) -> Working:
    """The quotient for any signs of a division that leaves nothing.

    >>> divide_signed(-36, 3).result
    -12
    """
    size, remainder = divide(abs(a), abs(b))
    assert remainder == 0, f"{a} is no multiple of {b}"
    result = size.result if (a < 0) == (b < 0) else -size.result
    lines = size.lines
    if a < 0 or b < 0:
        signs = "different signs, so it is negative" if result < 0 else "the same sign, so the quotient is positive"
        lines = (*lines, f"  {a} and {b} have {signs}.")
    return Working(lines, result)
