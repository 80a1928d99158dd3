"""The task families of the `ldq` sample, by domain, and the short reasoning that some of them have.

A reasoning function turns a task's metadata into a sentence or two. Families without one give the
bare answer, as much of a large, mixed collection does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Metadata = dict[str, Any]

FAMILIES_BY_DOMAIN: dict[str, tuple[str, ...]] = {
    "math": (
        "base_conversion",
        "basic_arithmetic",
        "bitwise_arithmetic",
        "calendar_arithmetic",
        "coin_flip",
        "complex_arithmetic",
        "count_bits",
        "count_primes",
        "decimal_arithmetic",
        "decimal_chain_sum",
        "dice",
        "fraction_simplification",
        "gsm_symbolic",
        "lcm",
        "leg_counting",
        "number_filtering",
        "number_format",
        "number_sequence",
        "number_sorting",
        "power_function",
        "prime_factorization",
        "simple_geometry",
    ),
    "code": (
        "ab",
        "binary_alternation",
        "binary_matrix",
        "course_schedule",
        "largest_island",
        "manipulate_matrix",
        "palindrome_generation",
        "palindrome_partitioning",
        "pool_matrix",
        "rotate_matrix",
        "rotten_oranges",
        "shortest_path",
        "spiral_matrix",
        "string_insertion",
        "string_manipulation",
    ),
    "general": (
        "aiw",
        "caesar_cipher",
        "circuit_logic",
        "family_relationships",
        "knights_knaves",
        "letter_counting",
        "letter_jumble",
        "mini_sudoku",
        "needle_haystack",
        "self_reference",
        "sentence_reordering",
        "spell_backward",
        "syllogism",
        "word_sequence_reversal",
        "word_sorting",
    ),
}
"""Families that are quick to make and give the same tasks in every process.

Not among them: `time_intervals` reads the clock; `isomorphic_strings`, `list_functions`, `ransom_note`
and `word_ladder` depend on Python's hash seed (reasoning-gym 0.1.25, measured); and the families of `shq`.
"""

OPTIONS: dict[str, Metadata] = {
    "base_conversion": {"min_value": 1},  # reasoning-gym 0.1.25 writes 0 as an empty string
}
"""Options of families whose defaults give broken tasks."""


def _listed(items: list[Any]) -> str:
    return ", ".join(str(item) for item in items)


def _gsm_symbolic(metadata: Metadata) -> str:
    lines = [line for line in str(metadata["answer_cot"]).splitlines() if not line.startswith("####")]
    return "\n".join(lines).strip()


def _lcm(metadata: Metadata) -> str:
    numbers = metadata["numbers"]
    if len(numbers) != 2:
        return ""
    a, b = numbers
    shared = math.gcd(a, b)
    return f"The greatest common divisor of {a} and {b} is {shared}, so the LCM is {a} × {b} / {shared}."


def _prime_factorization(metadata: Metadata) -> str:
    rest, lines = metadata["number"], []
    for factor in metadata["factors"][:-1]:
        lines.append(f"{rest} = {factor} × {rest // factor}")
        rest //= factor
    return "\n".join([*lines, f"{rest} is prime."])


def _fraction_simplification(metadata: Metadata) -> str:
    return (
        f"{metadata['numerator']} and {metadata['denominator']} are both divisible by {metadata['reduction_factor']}."
    )


def _count_bits(metadata: Metadata) -> str:
    return f"In binary {metadata['number']} is {metadata['binary']}."


def _base_conversion(metadata: Metadata) -> str:
    return f"{metadata['source_repr']} in base {metadata['source_base']} is {metadata['decimal_value']} in base 10."


def _simple_geometry(metadata: Metadata) -> str:
    return (
        f"The interior angles of a polygon with {metadata['n_sides']} sides sum to "
        f"({metadata['n_sides']} - 2) × 180 = {metadata['total_interior_sum']} degrees; "
        f"the known ones sum to {metadata['sum_of_known_angles']}."
    )


def _coin_flip(metadata: Metadata) -> str:
    fraction = metadata["rational"]
    return f"{fraction['numerator']} of {fraction['denominator']} equally likely outcomes count."


def _number_sequence(metadata: Metadata) -> str:
    return f"The rule is: {metadata['rule']}."


def _caesar_cipher(metadata: Metadata) -> str:
    return f"Every letter was moved forward by {metadata['rotation']}, so I move each back by {metadata['rotation']}."


def _spell_backward(metadata: Metadata) -> str:
    return f"The letters are {_listed(list(metadata['word']))}. From the last to the first:"


def _letter_counting(metadata: Metadata) -> str:
    letter = metadata["target_letter"].lower()
    holding = [word for word in metadata["span"] if letter in word.lower()]
    return f'Words with "{letter}": {_listed(holding)}.' if holding else f'No word has "{letter}".'


REASONING: dict[str, Callable[[Metadata], str]] = {
    "base_conversion": _base_conversion,
    "caesar_cipher": _caesar_cipher,
    "coin_flip": _coin_flip,
    "count_bits": _count_bits,
    "fraction_simplification": _fraction_simplification,
    "gsm_symbolic": _gsm_symbolic,
    "lcm": _lcm,
    "letter_counting": _letter_counting,
    "number_sequence": _number_sequence,
    "prime_factorization": _prime_factorization,
    "simple_geometry": _simple_geometry,
    "spell_backward": _spell_backward,
}
"""Families with short reasoning; an empty string means none for this task."""
