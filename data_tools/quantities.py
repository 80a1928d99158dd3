"""Numbers as people write them: `20B`, `1.5M`, `8_192`, `1,500,000`, `1e9`, `1e-4`.

K, M, B and T are powers of 1000, as in "400B tokens"; never powers of 1024. Bytes say which: `80GB`, `80GiB`.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decimal import Decimal

_SCALES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_COUNT = re.compile(
    r"(?P<mantissa>(?:\d{1,3}(?:,\d{3})+|\d+(?:_\d+)*)(?:\.\d+)?)"  # 1,500,000 or 8_192 or 1.5
    r"(?:(?P<exponent>[eE][+-]?\d{1,3})|(?P<scale>[KMBT]))?",
    re.ASCII,
)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_BYTES = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<scale>[MGT])(?P<binary>i?)B", re.ASCII)
_LARGEST_COUNT = 2**63 - 1  # what numpy and the file formats hold


def parse_count(value: object) -> int:
    """A whole, non-negative number of things.

    Args:
        value: An int, a whole float, or a string such as `20B`, `1.5M`, `8_192`, `1e9`.

    Returns:
        The exact count.

    Raises:
        ValueError: One line that says what is wrong with `value`.

    >>> parse_count("1.5M"), parse_count("8_192"), parse_count("1e9")
    (1500000, 8192, 1000000000)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        shown = "null" if value is None else repr(value)
        raise ValueError(f"{shown} is not a count; write a whole number such as 8192, 1.5M or 20B")
    exact = _exact(value)
    if exact < 0:
        raise ValueError(f"{value!r} is negative; a count is 0 or more")
    if exact > _LARGEST_COUNT:
        raise ValueError(f"{value!r} is larger than {_LARGEST_COUNT:,}, the largest count")
    if exact != exact.to_integral_value():
        raise ValueError(f"{value!r} is not a whole number; it is {exact.normalize():f}")
    return int(exact)


def _exact(value: int | float | str) -> Decimal:
    from decimal import Decimal  # whoever only prints counts need not load it

    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    if not isinstance(value, str):
        return Decimal(value)
    text = value.strip()
    match = _COUNT.fullmatch(text.removeprefix("-"))
    if match is None:
        raise ValueError(
            f"{value!r} is not a count; write digits such as 8192 or 8_192, or a suffix K, M, B or T (powers of 1000)"
        )
    mantissa = match["mantissa"].replace(",", "").replace("_", "")
    exact = Decimal(mantissa + (match["exponent"] or "")) * _SCALES.get(match["scale"] or "", 1)
    return -exact if text.startswith("-") else exact


def parse_bytes(text: str) -> int:
    """A size of memory or disk; the unit is written, because 80 GB and 80 GiB differ by 7 %.

    Raises:
        ValueError: One line that says what is wrong with `text`.

    >>> parse_bytes("80GB"), parse_bytes("1.5 GiB")
    (80000000000, 1610612736)
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is no size; write a number and its unit: MB, GB, TB (powers of 1000), MiB, GiB, TiB"
        )
    from decimal import Decimal

    unit = 1024 if match["binary"] else 1000
    return int(Decimal(match["number"]) * unit ** (2 + "MGT".index(match["scale"])))


def parse_number(value: object) -> float:
    """A finite real number.

    Args:
        value: An int, a float, or a string such as `1e-4`, which YAML 1.1 readers leave a string.

    Raises:
        ValueError: One line that says what is wrong with `value`.

    >>> parse_number("1e-4")
    0.0001
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a number; write one such as 0.1 or 1e-4")
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) is None:
        raise ValueError(f"{value!r} is not a number; write one such as 0.1 or 1e-4")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def format_count(count: int) -> str:
    """A count to three significant digits, for tables; `format_exact` loses nothing.

    >>> format_count(1_500_000), format_count(999_999), format_count(512)
    ('1.5M', '1M', '512')
    """
    if abs(count) < 1000:
        return str(count)
    mantissa, _, exponent = f"{count:.2e}".partition("e")  # rounded first, so that 999,999 becomes 1M, not 1000K
    thousands = min(int(exponent) // 3, len(_SCALES))
    return f"{float(mantissa) * 10 ** (int(exponent) - 3 * thousands):.10g}{list(_SCALES)[thousands - 1]}"


def format_exact(count: int) -> str:
    """Every digit, grouped by thousands.

    >>> format_exact(1_500_000)
    '1,500,000'
    """
    return f"{count:,}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and its noun.

    >>> counted(1, "sample"), counted(2_000, "sample")
    ('1 sample', '2,000 samples')
    """
    return f"{format_exact(number)} {one if number == 1 else many or one + 's'}"
