"""Tasks of a family: questions with stored answers and the means to score others.

Most families are reasoning-gym's; three are made here, because its own scorers or questions for them run
text as code and depend on Python's hash seed (`polynomial_multiplication`) or do not exist.

What a question is used for hangs on the question alone (`use_of`), so questions to train on, to practise
on and to be tested with are apart whatever the seed, the size and the set they are made for.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, Literal

from data_tools.errors import SetupError
from data_tools.samples.mini_tasks import MINI_FAMILIES
from data_tools.samples.rows import Tally
from data_tools.samples.traces.algebra import written_polynomial
from data_tools.samples.traces.trace import Facts
from data_tools.scoring import is_right

Use = Literal["train", "rl", "eval"]

USES: tuple[Use, ...] = ("eval",) + 3 * ("rl",) + 12 * ("train",)
"""Sixteenths of all questions."""

MOST_TASKS = 20_000
"""Tasks asked of one family at most: some draw a plan of that length first, some refuse to give more."""
_MOST_LOOKED_AT = 2_000
"""Tasks looked at for one row; a family that has no new one among them is used up."""

OPTIONS: dict[str, dict[str, Any]] = {
    "base_conversion": {"min_value": 1_000, "max_value": 10_000_000},
    "chain_sum": {"min_terms": 3, "max_terms": 7, "min_digits": 2, "max_digits": 5},
    "circuit_logic": {"min_terms": 4, "max_terms": 7, "max_inputs": 5},
    "complex_arithmetic": {
        "min_real": -199, "max_real": 199, "min_imag": -199, "max_imag": 199,
        "operations_weights": [0.2, 0.2, 0.6, 0.0],
    },
    "gcd": {"min_numbers": 2, "max_numbers": 3, "min_value": 100, "max_value": 1_000_000},
    "knights_knaves": {"n_people": 3},
    "lcm": {"min_numbers": 2, "max_numbers": 3, "min_value": 20, "max_value": 500},
    "prime_factorization": {"min_value": 1_000, "max_value": 100_000},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 4},
    "simple_equations": {"min_terms": 2, "max_terms": 4, "min_value": 1, "max_value": 100},
}  # fmt: skip
"""Difficulty where it is not reasoning-gym's default, in its words."""


@dataclass(frozen=True)
class Task:
    """A question with a right answer.

    Attributes:
        family: As in reasoning-gym, or one of ours.
        question: Without white space around it.
        answer: The stored one.
        facts: What else the task says about its question.
        score: 1.0 for answers that are right.
    """

    family: str
    question: str
    answer: str
    facts: Facts
    score: Callable[[str], float]


def use_of(question: str) -> Use:
    r"""What a question may be used for, for ever; case and white space make no other question.

    >>> use_of("What is 1 + 1?") == use_of("what is\n1 + 1? ")
    True
    """
    plain = " ".join(question.casefold().split())
    return USES[hashlib.sha256(plain.encode()).digest()[0] % len(USES)]


def new_tasks(family: str, *, seed: int, use: Use, tally: Tally) -> Iterator[Task]:
    """Tasks of a family for one use, each question once, with a stored answer that is right, until none is new.

    Args:
        family: One of reasoning-gym's or of `OWN_FAMILIES`.
        seed: Of this family in this set.
        use: Questions for other uses are left out.
        tally: Counts what is left out.

    Raises:
        SetupError: If reasoning-gym is not installed.
    """
    tasks = _own_tasks(family, seed) if family in OWN_FAMILIES else _gym_tasks(family, seed, tally)
    seen: set[str] = set()
    while True:
        for task in itertools.islice(tasks, _MOST_LOOKED_AT):
            reason = _refusal(task, use, seen)
            if not reason:
                yield task
                break
            tally.left_out[reason] += 1
        else:
            tally.left_out[f"family {family} has no new question"] += 1
            return


def _refusal(task: Task, use: Use, seen: set[str]) -> str | None:
    if use_of(task.question) != use:
        return f"question for another use than {use}"
    if task.question in seen:
        return "question made before"
    seen.add(task.question)
    # Seen in reasoning-gym 0.1.25: empty answers of string_manipulation, negative ages in gsm_symbolic.
    return None if task.score(task.answer) == 1.0 else f"stored answer refused by the scorer of {task.family}"


def family_seed(seed: int, source: str, family: str) -> int:
    """A seed of its own for each family.

    reasoning-gym seeds item i with seed + i, so families that shared a seed would share their numbers.

    >>> family_seed(0, "ldq", "gcd") == family_seed(0, "ldq", "lcm")
    False
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{source}/{family}".encode()).digest()[:4], "big") >> 1


def _gym_tasks(family: str, seed: int, tally: Tally) -> Iterator[Task]:
    made = reasoning_gym().create_dataset(family, seed=seed, size=MOST_TASKS, **OPTIONS.get(family, {}))
    for index in range(MOST_TASKS):
        try:
            entry = made[index]
        except Exception as error:  # seen: maze gives up on some seeds; whatever the library raises, no other seed does
            tally.left_out[f"task of {family} that reasoning-gym cannot make: {type(error).__name__}"] += 1
            continue

        def score(answer: str, entry: dict[str, Any] = entry) -> float:
            return float(made.score_answer(answer, entry))

        yield Task(family, entry["question"].strip(), entry["answer"].strip(), entry["metadata"], score)


@cache
def reasoning_gym() -> Any:
    """The library of procedural tasks; its import takes seconds.

    Raises:
        SetupError: If it is not installed.
    """
    reasoning_gym_versions()
    return importlib.import_module("reasoning_gym")


def reasoning_gym_versions() -> dict[str, str]:
    """What decides its tasks, for cards, without importing it.

    Raises:
        SetupError: If it is not installed.
    """
    try:
        return {name: importlib.metadata.version(name.replace("_", "-")) for name in ("reasoning_gym", "sympy")}
    except importlib.metadata.PackageNotFoundError:
        raise SetupError(
            "reasoning-gym is not installed, and all samples but base are made with it; "
            "install it with: pip install 'megatron-ext[samples]', or make only --only base"
        ) from None


def _own_tasks(family: str, seed: int) -> Iterator[Task]:
    make, scorer = OWN_FAMILIES[family]
    for index in range(MOST_TASKS):
        question, answer = make(Random(seed + index))

        def score(said: str, truth: str = answer) -> float:
            return float(is_right(said, truth, scorer=scorer))

        yield Task(family, question, answer, {}, score)


def _linear_system(random: Random) -> tuple[str, str]:
    """Two equations made from their solution."""
    x, y = random.randint(-99, 99), random.randint(-99, 99)
    rows: list[tuple[int, int]] = []
    while len(rows) < 2:
        a, b = (random.choice((-1, 1)) * random.randint(2, 40) for _ in "ab")
        if not rows or rows[0][0] * b != rows[0][1] * a:
            rows.append((a, b))
    said = [f"{a}*x {'-' if b < 0 else '+'} {abs(b)}*y = {a * x + b * y}" for a, b in rows]
    question = f"Solve for x and y: {said[0]} and {said[1]}. Give the answer in the form x = 1, y = 2."
    return question, f"x = {x}, y = {y}"


def _polynomial_product(random: Random) -> tuple[str, str]:
    """Two factors of degree 1 or 2; the answer by convolution."""
    factors = []
    for _ in "ab":
        degree = random.randint(1, 2)
        kept = {degree, *(power for power in range(degree) if random.random() < 0.8)}
        factors.append({power: random.choice((-1, 1)) * random.randint(1, 99) for power in sorted(kept)})
    product: dict[int, int] = {}
    for left, a in factors[0].items():
        for right, b in factors[1].items():
            product[left + right] = product.get(left + right, 0) + a * b
    said = "*".join(f"({written_polynomial(factor)})" for factor in factors)
    return f"Multiply out and collect like terms: {said}. Write powers as x**2.", written_polynomial(product)


def _last_digit(random: Random) -> tuple[str, str]:
    number = random.randint(1_000, 9_999)
    return f"Last digit: {number}", str(number % 10)


OWN_FAMILIES: dict[str, tuple[Callable[[Random], tuple[str, str]], str]] = {
    "last_digit": (_last_digit, "number"),
    "linear_systems": (_linear_system, "exact"),
    "polynomial_products": (_polynomial_product, "polynomial"),
    **MINI_FAMILIES,
}
"""Families made here: a question with its answer, and the scorer of answers."""
