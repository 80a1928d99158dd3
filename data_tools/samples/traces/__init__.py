"""Step-by-step traces of the `shq` sample, by task family.

A trace is written from the question (and of a logic puzzle its statements); the task's stored answer
is never looked at, so that a scorer that accepts what a trace comes to has checked the trace.
"""

from __future__ import annotations

from data_tools.samples.traces.algebra import (
    complex_arithmetic,
    linear_equation,
    linear_system,
    polynomial_product,
)
from data_tools.samples.traces.arithmetic import (
    base_conversion,
    chain_sum,
    greatest_common_divisor,
    least_common_multiple,
    prime_factors,
    product,
)
from data_tools.samples.traces.logic import circuit, knights_and_knaves
from data_tools.samples.traces.trace import TraceWriter, of_question

TRACE_WRITERS: dict[str, TraceWriter] = {
    "base_conversion": of_question(base_conversion),
    "chain_sum": of_question(chain_sum),
    "circuit_logic": circuit,
    "complex_arithmetic": of_question(complex_arithmetic),
    "gcd": of_question(greatest_common_divisor),
    "knights_knaves": knights_and_knaves,
    "lcm": of_question(least_common_multiple),
    "linear_systems": of_question(linear_system),
    "polynomial_products": of_question(polynomial_product),
    "prime_factorization": of_question(prime_factors),
    "products": of_question(product),
    "simple_equations": of_question(linear_equation),
}
"""Families that have a trace writer."""
