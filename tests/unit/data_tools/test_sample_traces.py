"""Arithmetic on paper and the traces made of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.samples.traces.algebra import complex_arithmetic, linear_equation, linear_system, polynomial_product
from data_tools.samples.traces.arithmetic import (
    base_conversion,
    chain_sum,
    greatest_common_divisor,
    least_common_multiple,
    prime_factors,
    product,
)
from data_tools.samples.traces.logic import circuit, knights_and_knaves
from data_tools.samples.traces.paper import (
    add,
    add_signed,
    divide,
    divide_signed,
    multiply,
    multiply_by_digit,
    multiply_signed,
    subtract,
)
from data_tools.samples.traces.trace import NoSingleAnswer

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
    trace = chain_sum("State the final answer to the following arithmetic problem: 12 - 30 + 5 =")
    assert trace.answer == "-13"
    assert "  The running total is now -18." in trace.lines
    assert trace.lines[-1] == "  17 - 30 = -13, the same as the running total."


def test_a_product_is_checked_by_casting_out_nines() -> None:
    trace = product("Solve the following multiplication: 47 * 12. Give only the result as your final answer.")
    assert trace.answer == "564"
    assert trace.lines[-1] == "  2 x 3 = 6 reduces to 6, which agrees."


def test_a_greatest_common_divisor_is_found_by_euclid() -> None:
    trace = greatest_common_divisor(
        "Find the Greatest Common Divisor (GCD) of these numbers: 48, 18, 27. Give only the GCD."
    )
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
    trace = linear_equation(question)
    assert trace.answer == answer
    assert "equal to the right side" in trace.lines[-1]


def test_an_equation_without_an_unknown_has_no_trace() -> None:
    with pytest.raises(NoSingleAnswer):
        linear_equation("Solve for x: 0 = 0")


def test_a_question_of_an_unknown_form_is_a_bug_and_not_guessed() -> None:
    with pytest.raises(AssertionError, match="the question has another form"):
        product("What is 3 times 4?")


@given(st.integers(-999, 999), st.integers(-999, 999))
def test_signed_products_and_quotients_equal_the_machine_s(a: int, b: int) -> None:
    assert multiply_signed(a, b).result == a * b
    if b:
        assert divide_signed(a * b, b).result == a


def test_a_digit_of_0_adds_no_partial_product() -> None:
    assert multiply(12, 10).lines == (
        "The ones digit of 10 is 0: it adds nothing.",
        "The tens digit of 10 is 1: 12 x 1.",
        "  ones: 2 x 1 = 2, write 2",
        "  tens: 1 x 1 = 1, write 1",
        "  So 12 x 1 = 12.",
        "  Shifted by 1: 120.",
    )
    assert multiply(12, 0).result == 0


def test_a_least_common_multiple_is_checked_by_dividing() -> None:
    trace = least_common_multiple("Find the Least Common Multiple (LCM) of these numbers: 12, 18")
    assert trace.answer == "36"
    assert [line for line in trace.lines if line.startswith("  So 36")] == [
        "  So 36 = 3 x 12 + 0.",
        "  So 36 = 2 x 18 + 0.",
    ]


def test_prime_factors_are_tried_in_order_and_multiplied_back() -> None:
    trace = prime_factors("Find the prime factorization of 63. Write the factors separated by ×")
    assert trace.answer == "3 × 3 × 7"
    assert trace.lines[1] == "2 does not divide 63: the remainder is 1."
    assert trace.lines[-3:] == ("  3 x 3 = 9", "  9 x 7 = 63", "  The product is 63, as it must be.")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("convert the base-11 number 201 to base-10", "243"),
        ("convert the hexadecimal number ff to binary", "11111111"),
        ("convert the binary number 1010 to hexadecimal", "a"),
        ("convert the base-7 number 15 to base-12", "10"),
    ],
)
def test_a_number_is_carried_to_another_base(question: str, answer: str) -> None:
    assert base_conversion(question).answer == answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Add the complex numbers: (7.0 - 6.0i) + (1.0 + 9.0i)", "8 + 3i"),
        ("Subtract the complex numbers: (5.00) - (7.0 - 6.0i)", "-2 + 6i"),
        ("Multiply the complex numbers: (1.0 + 2.0i) × (3.0 - 4.0i)", "11 + 2i"),
        ("Multiply the complex numbers: (-2.00i) × (-3.00i)", "-6 + 0i"),
    ],
)
def test_complex_numbers_are_worked_out_part_by_part(question: str, answer: str) -> None:
    assert complex_arithmetic(question).answer == answer


def test_a_linear_system_is_solved_by_elimination_and_checked() -> None:
    trace = linear_system(
        "Solve for x and y: 2*x + 3*y = 7 and 4*x - 5*y = 25. Give the answer in the form x = 1, y = 2."
    )
    assert trace.answer == "x = 5, y = -1"
    assert "This leaves -22*x = -110." in trace.lines
    assert trace.lines[-1] == "  The left side is 25, equal to the right side."


def test_a_polynomial_product_is_checked_at_a_point() -> None:
    trace = polynomial_product("Multiply out and collect like terms: (x + 2)*(3*x**2 - x). Write powers as x**2.")
    assert trace.answer == "3*x**3 + 5*x**2 - 2*x"
    assert [line for line in trace.lines if line.startswith("Terms")] == [
        "Terms with x**3: 3.",
        "Terms with x**2: -1, 6.",
        "Terms with x: -2.",
    ]
    assert trace.lines[-2] == "  The factors are 4 and 10, their product is 40."


KNIGHTS = {"a_knight": "a knight", "a_knave": "a knave"}


def test_knights_and_knaves_are_told_apart_by_trying_every_case() -> None:
    statements = (("lying", 1), ("and", ("telling-truth", 0), ("telling-truth", 1)))
    facts = {"names": ["Ann", "Bob"], "statements": statements, "knight_knave_terms": KNIGHTS}
    trace = knights_and_knaves("Who is who?", facts)
    assert trace.answer == "Ann is a knight, and Bob is a knave"
    assert trace.lines[4:6] == (
        "Case 1: Ann is a knight, and Bob is a knight.",
        "  Ann is a knight and says: Bob is a knave. That is false, a contradiction.",
    )
    assert trace.lines[-1] == "All cases were tried, and case 2 alone is left."


@pytest.mark.parametrize(
    ("statement", "role_of_ann"),
    [
        (("or", ("lying", 0), ("lying", 1)), "knight"),
        (("->", ("telling-truth", 0), ("lying", 1)), "knight"),
        (("<=>", ("telling-truth", 1), ("lying", 1)), "knave"),
        (("not", ("and", ("telling-truth", 1), ("telling-truth", 0))), "knight"),
    ],
)
def test_every_connective_is_understood(statement: Any, role_of_ann: str) -> None:
    facts = {"names": ["Ann", "Bob"], "statements": (statement, ("lying", 0)), "knight_knave_terms": KNIGHTS}
    assert knights_and_knaves("Who is who?", facts).answer.startswith(f"Ann is a {role_of_ann}, and Bob is a")


def test_an_implication_without_its_condition_is_true() -> None:
    statements = (("->", ("lying", 1), ("telling-truth", 1)), ("<=>", ("telling-truth", 0), ("telling-truth", 1)))
    facts = {"names": ["Ann", "Bob"], "statements": statements, "knight_knave_terms": KNIGHTS}
    assert knights_and_knaves("Who is who?", facts).answer == "Ann is a knight, and Bob is a knight"


def test_a_puzzle_with_two_solutions_is_a_bug() -> None:
    facts = {"names": ["Ann", "Bob"], "statements": (("telling-truth", 0),) * 2, "knight_knave_terms": KNIGHTS}
    with pytest.raises(AssertionError, match="2 cases are left"):
        knights_and_knaves("Who is who?", facts)


@pytest.mark.parametrize(("gate", "outputs"), [("&", "001"), ("↑", "110"), ("⊕", "010"), ("↓", "100"), ("+", "011")])
def test_each_gate_is_known_by_its_sign(gate: str, outputs: str) -> None:
    inputs = [{"A": 0, "B": 0}, {"A": 1, "B": 0}, {"A": 1, "B": 1}]
    facts = [{"assignments": values, "term_strings": [f"A{gate}B"], "final_gate": "OR"} for values in inputs]
    assert "".join(circuit("…", fact).answer for fact in facts) == outputs


def test_a_circuit_is_evaluated_gate_by_gate() -> None:
    facts = {"assignments": {"A": 1, "B": 0}, "term_strings": ["A↑B'", "A⊕B⊕A"], "final_gate": "NOR"}
    trace = circuit("…", facts)
    assert trace.answer == "1"
    assert trace.lines == (
        "The inputs are A = 1, B = 0.",
        "Gate 1 is a NAND of A, not B.",
        "  A is 1",
        "  not B is not 0, that is 1",
        "  NAND of 1, 1 is 0, because all are 1.",
        "Gate 2 is an XOR of A, B, A.",
        "  A is 1",
        "  B is 0",
        "  A is 1",
        "  XOR of 1, 0, 1 is 0, because 2 of them, an even number, are 1.",
        "The last gate is a NOR of the outputs 0, 0.",
        "  That is 1, because none is 1.",
    )
