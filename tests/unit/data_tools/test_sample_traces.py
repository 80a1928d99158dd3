"""Arithmetic on paper and the traces made of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.samples.arithmetic import add, add_signed, divide, multiply, multiply_by_digit, subtract
from data_tools.samples.traces import NoSingleAnswer, chain_sum_trace, equation_trace, gcd_trace, products_trace

sizes = st.integers(0, 10**10)


def test_a_column_addition_shows_each_carry() -> None:
    assert add(47, 985).lines == (
        "  ones: 7 + 5 = 12, write 2, carry 1",
        "  tens: 4 + 8 + 1 carried = 13, write 3, carry 1",
        "  hundreds: 9 + 1 carried = 10, write 0, carry 1",
        "  thousands: write the carried 1",
        "  So 47 + 985 = 1032.",
    )


def test_a_column_subtraction_shows_each_borrowing() -> None:
    assert subtract(503, 58).lines == (
        "  ones: borrow 10, 13 - 8 = 5",
        "  tens: 0 - 1 borrowed = -1, borrow 10, 9 - 5 = 4",
        "  hundreds: 5 - 1 borrowed = 4, 4 - 0 = 4",
        "  So 503 - 58 = 445.",
    )


def test_a_product_with_one_digit_shows_each_carry() -> None:
    assert multiply_by_digit(78, 7).lines == (
        "  ones: 8 x 7 = 56, write 6, carry 5",
        "  tens: 7 x 7 = 49 + 5 carried = 54, write 4, carry 5",
        "  hundreds: write the carried 5",
        "  So 78 x 7 = 546.",
    )


def test_a_long_division_shows_each_remainder() -> None:
    working, remainder = divide(845, 12)
    assert working.lines == (
        "  12 goes into 84 7 times: 7 x 12 = 84, remainder 0",
        "  12 goes into 5 0 times: 0 x 12 = 0, remainder 5",
        "  So 845 = 70 x 12 + 5.",
    )
    assert (working.result, remainder) == (70, 5)
    assert divide(12, 12)[0].lines[0] == "  12 goes into 12 once: 1 x 12 = 12, remainder 0"


@given(sizes, sizes)
def test_paper_arithmetic_equals_the_machine_s(a: int, b: int) -> None:
    assert add(a, b).result == a + b
    assert subtract(max(a, b), min(a, b)).result == abs(a - b)
    assert multiply(a, b).result == a * b
    working, remainder = divide(a, b + 1)
    assert (working.result, remainder) == divmod(a, b + 1)


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_signed_addition_equals_the_machine_s(a: int, b: int) -> None:
    assert add_signed(a, b).result == a + b


def test_a_chain_is_a_running_total_with_a_check() -> None:
    trace = chain_sum_trace("State the final answer to the following arithmetic problem: 12 - 30 + 5 =")
    assert trace.answer == "-13"
    assert "  The running total is now -18." in trace.lines
    assert trace.lines[-1] == "  17 - 30 = -13, the same as the running total."


def test_a_product_is_checked_by_casting_out_nines() -> None:
    trace = products_trace("Solve the following multiplication: 47 * 12. Give only the result as your final answer.")
    assert trace.answer == "564"
    assert trace.lines[-1] == "  2 x 3 = 6 reduces to 6, which agrees."


def test_a_greatest_common_divisor_is_found_by_euclid() -> None:
    trace = gcd_trace("Find the Greatest Common Divisor (GCD) of these numbers: 48, 18, 27. Give only the GCD.")
    assert trace.answer == "3"
    assert [line for line in trace.lines if line.startswith("Divide")] == [
        "Divide 48 by 18.",
        "Divide 18 by 12.",
        "Divide 12 by 6.",
        "Divide 27 by 6.",
        "Divide 6 by 3.",
    ]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Solve for x: 3*x + 5 = 20", "5"),
        ("Find the value of e in the equation: 56 - 98*e = -1218", "13"),
        ("Determine the value of b that satisfies: 4465*b = 178600", "40"),
        ("Solve for x: x - 7 = -3", "4"),
        ("Solve for x: -x = 5", "-5"),
        ("Solve for x: 5 - x = 5", "0"),
        ("Solve for x: -4*x - 2 = 10", "-3"),
    ],
)
def test_a_linear_equation_of_any_form_is_solved(question: str, answer: str) -> None:
    trace = equation_trace(question)
    assert trace.answer == answer
    assert "equal to the right side" in trace.lines[-1]


def test_an_equation_without_an_unknown_has_no_trace() -> None:
    with pytest.raises(NoSingleAnswer):
        equation_trace("Solve for x: 0 = 0")


def test_a_question_of_an_unknown_form_is_a_bug_and_not_guessed() -> None:
    with pytest.raises(AssertionError, match="the question has another form"):
        products_trace("What is 3 times 4?")
