"""The task families of the `ldq` sample, by domain, and the short reasoning that some of them have.

Families without reasoning give the bare answer, as much of a large, mixed collection does.
"""

from __future__ import annotations

from collections.abc import Callable

from data_tools.samples.traces.trace import Facts

FAMILIES_BY_DOMAIN: dict[str, tuple[str, ...]] = {
    "math": (
        "basic_arithmetic",
        "bitwise_arithmetic",
        "calendar_arithmetic",
        "coin_flip",
        "count_bits",
        "count_primes",
        "decimal_arithmetic",
        "decimal_chain_sum",
        "dice",
        "fraction_simplification",
        "gsm_symbolic",
        "leg_counting",
        "number_filtering",
        "number_format",
        "number_sequence",
        "number_sorting",
        "power_function",
        "simple_geometry",
    ),
    "code": (
        "ab",
        "binary_alternation",
        "binary_matrix",
        "course_schedule",
        "group_anagrams",
        "largest_island",
        "manipulate_matrix",
        "palindrome_generation",
        "palindrome_partitioning",
        "path_star",
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
        "family_relationships",
        "kakurasu",
        "letter_counting",
        "letter_jumble",
        "mini_sudoku",
        "n_queens",
        "needle_haystack",
        "self_reference",
        "sentence_reordering",
        "spell_backward",
        "survo",
        "syllogism",
        "word_sequence_reversal",
        "word_sorting",
    ),
}
"""Families that are quick to make and give the same tasks in every process.

Not among them: `time_intervals` reads the clock; `isomorphic_strings`, `list_functions`,
`polynomial_multiplication`, `ransom_note` and `word_ladder` depend on Python's hash seed (reasoning-gym
0.1.25, measured); the families of `shq`; and those that evaluation alone asks for (`prompts.py`).
"""

DOMAIN_OF = {family: domain for domain, families in FAMILIES_BY_DOMAIN.items() for family in families}


def _gsm_symbolic(facts: Facts) -> str:
    lines = [line for line in str(facts["answer_cot"]).splitlines() if not line.startswith("####")]
    return "\n".join(lines).strip()


def _letter_counting(facts: Facts) -> str:
    letter = facts["target_letter"].lower()
    holding = [word for word in facts["span"] if letter in word.lower()]
    return f'Words with "{letter}": {", ".join(holding)}.' if holding else f'No word has "{letter}".'


REASONING: dict[str, str | Callable[[Facts], str]] = {
    "caesar_cipher": "Every letter was moved forward by {rotation}, so I move each back by {rotation}.",
    "coin_flip": "{rational[numerator]} of {rational[denominator]} equally likely outcomes count.",
    "count_bits": "In binary {number} is {binary}.",
    "count_primes": "The primes are {primes}.",
    "fraction_simplification": "{numerator} and {denominator} are both divisible by {reduction_factor}.",
    "gsm_symbolic": _gsm_symbolic,
    "letter_counting": _letter_counting,
    "number_sequence": "The rule is: {rule}.",
    "simple_geometry": "The interior angles of a polygon with {n_sides} sides sum to ({n_sides} - 2) × 180 = "
    "{total_interior_sum} degrees; the known ones sum to {sum_of_known_angles}.",
    "spell_backward": lambda facts: f"The letters are {', '.join(facts['word'])}. From the last to the first:",
    "string_manipulation": lambda facts: " -> ".join(facts["states"]),
}
"""Short reasoning: a sentence with the task's facts in it, or a function of them."""


def reasoning(family: str, facts: Facts) -> str:
    """The short reasoning of a task; empty where its family has none.

    >>> reasoning("count_bits", {"number": 5, "binary": "101"})
    'In binary 5 is 101.'
    """
    said = REASONING.get(family, "")
    return said.format_map(facts) if isinstance(said, str) else said(facts)
