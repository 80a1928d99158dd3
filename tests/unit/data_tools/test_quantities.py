"""Counts and numbers as people write them."""

from __future__ import annotations

import pytest

from data_tools.quantities import format_count, format_exact, parse_count, parse_number


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (8192, 8192),
        (1e9, 1_000_000_000),
        ("20B", 20_000_000_000),
        ("1.5M", 1_500_000),
        ("2K", 2_000),
        ("1T", 1_000_000_000_000),
        ("8_192", 8192),
        ("1,500,000", 1_500_000),
        ("1e9", 1_000_000_000),
        ("1.5e1", 15),
        (" 7 ", 7),
        ("0", 0),
    ],
)
def test_a_count_is_read_exactly_in_every_human_form(written: object, count: int) -> None:
    parsed = parse_count(written)
    assert parsed == count
    assert type(parsed) is int


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (True, "True is not a count"),
        (None, "null is not a count"),
        ("1.5", "is not a whole number; it is 1.5"),
        (1.5, "is not a whole number; it is 1.5"),
        ("1.2345K", "is not a whole number; it is 1234.5"),
        ("-3", "is negative"),
        (-3, "is negative"),
        ("20b", "powers of 1000"),
        ("20GB", "powers of 1000"),
        ("1e9B", "powers of 1000"),
        ("1,5", "powers of 1000"),
        ("1__0", "powers of 1000"),
        ("１２", "powers of 1000"),
        ("", "powers of 1000"),
        ("1e30", "is larger than 9,223,372,036,854,775,807"),
        (float("inf"), "not a finite number"),
    ],
)
def test_what_is_no_count_is_refused_with_the_reason(written: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_count(written)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("written", "number"), [("1e-4", 1e-4), (3, 3.0), (0.5, 0.5), ("-.5", -0.5), ("1_0.", 10.0)])
def test_a_number_is_read_from_yaml_strings_too(written: object, number: float) -> None:
    parsed = parse_number(written)
    assert parsed == number
    assert type(parsed) is float


@pytest.mark.parametrize("written", [True, None, "nan", "inf", float("nan"), "1e999", "one", "", "0x1p3"])
def test_what_is_no_finite_number_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="number"):
        parse_number(written)


@pytest.mark.parametrize(
    ("count", "short"),
    [(0, "0"), (999, "999"), (1000, "1K"), (1_234, "1.23K"), (1_500_000, "1.5M"), (999_999, "1M"), (2 * 10**13, "20T")],
)
def test_the_short_form_has_three_significant_digits(count: int, short: str) -> None:
    assert format_count(count) == short


def test_the_exact_form_keeps_every_digit_and_is_read_back() -> None:
    assert format_exact(1_897_466) == "1,897,466"
    assert parse_count(format_exact(1_897_466)) == 1_897_466
