r"""Questions so small that a model of a million parameters learns to answer them: the tasks of the miniature study.

Ten letters, digits from 0 to 6, a few words. Letters and digits are a token each in the miniature's tokenizer, and no
letter stands twice in a list, so that whoever has read one finds what follows it. Three groups:

| group  | families | to be answered |
|--------|----------|----------------|
| EASY   | 16       | at once |
| HARD   | 6        | in steps (`mini_traces.py`); guessed at once, most answers are wrong |
| UNSEEN | 4        | at once; no set trains on them |

Every family has thousands of questions, so that a sixteenth of them is enough to test with.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Made = tuple[str, str]
"""A question and its answer."""

LETTERS = "abcdefghij"
LARGEST = 6
"""The largest value of a letter."""


def _letters(random: Random, low: int = 3, high: int = 5) -> list[str]:
    """Different letters, their number between two bounds."""
    return random.sample(LETTERS, random.randint(low, high))


def _values(random: Random, low: int = 3, high: int = 5) -> dict[str, int]:
    """Different letters, each with a value."""
    return {letter: random.randint(0, LARGEST) for letter in _letters(random, low, high)}


def _own_values(random: Random, low: int = 3, high: int = 5) -> dict[str, int]:
    """Different letters, each with a value of its own."""
    letters = _letters(random, low, high)
    return dict(zip(letters, random.sample(range(LARGEST + 1), len(letters)), strict=True))


def _said(values: dict[str, int]) -> str:
    return " ".join(f"{letter} {value}" for letter, value in values.items())


def _of_letters(words: str, answer: Callable[[list[str]], str]) -> Callable[[Random], Made]:
    """A family that asks for something of a list of letters."""

    def make(random: Random) -> Made:
        letters = _letters(random)
        return f"{words}: {' '.join(letters)}", answer(letters)

    return make


def _of_values(words: str, answer: Callable[[list[int]], int]) -> Callable[[Random], Made]:
    """A family that asks for something of the values of a list."""

    def make(random: Random) -> Made:
        values = _values(random)
        return f"{words}: {_said(values)}", str(answer([*values.values()]))

    return make


def _value_of(random: Random) -> Made:
    values = _values(random)
    asked = random.choice([*values])
    return f"value of {asked}: {_said(values)}", str(values[asked])


def _who_has(random: Random) -> Made:
    values = _own_values(random)
    asked = random.choice([*values])
    return f"who has {values[asked]}: {_said(values)}", asked


def _after(random: Random) -> Made:
    letters = _letters(random)
    place = random.randrange(len(letters) - 1)
    return f"after {letters[place]}: {' '.join(letters)}", letters[place + 1]


def _before(random: Random) -> Made:
    letters = _letters(random)
    place = random.randrange(1, len(letters))
    return f"before {letters[place]}: {' '.join(letters)}", letters[place - 1]


def _in_both(random: Random) -> Made:
    letters = random.sample(LETTERS, 5)
    left, right = letters[:3], [letters[0], *letters[3:]]
    random.shuffle(left)
    random.shuffle(right)
    return f"in both: {' '.join(left)} and {' '.join(right)}", letters[0]


def _missing(random: Random) -> Made:
    letters = _letters(random, 4, 5)
    left_out = random.choice(letters)
    again = [letter for letter in letters if letter != left_out]
    return f"missing: {' '.join(letters)} then {' '.join(again)}", left_out


def _total(random: Random) -> Made:
    values = _values(random, 3, 4)
    return f"total: {_said(values)}", str(sum(values.values()))


def _turned(random: Random) -> Made:
    values = _values(random, 3, 5)
    return f"turn: {_said(values)}", str(sum(values.values()) % (LARGEST + 1))


def _gaps(random: Random) -> Made:
    first, *others = (values := _values(random, 3, 5)).values()
    for value in others:
        first = abs(first - value)
    return f"gaps: {_said(values)}", str(first)


def _ways(random: Random) -> Made:
    letters = random.sample(LETTERS, random.randint(4, 5))
    moves = dict(zip(letters, [*letters[1:], letters[0]], strict=True))
    order = random.sample(letters, len(letters))
    steps, start = random.randint(2, 3), random.randrange(len(letters))
    said = ", ".join(f"{letter} to {moves[letter]}" for letter in order)
    return f"ways: {said}. {steps} from {letters[start]}", letters[(start + steps) % len(letters)]


def _row(random: Random) -> Made:
    values = _own_values(random, 3, 4)
    return f"row: {_said(values)}", " ".join(sorted(values, key=values.__getitem__))


def _kept(random: Random) -> Made:
    values, limit = _values(random, 3, 5), random.randint(1, LARGEST - 2)
    kept = [letter for letter, value in values.items() if value > limit]
    return f"keep over {limit}: {_said(values)}", " ".join(kept) or "none"


Family = tuple[Callable[[Random], Made], str]
"""What makes its questions, and the scorer of its answers."""

EASY: dict[str, Family] = {
    "mini_after": (_after, "exact"),
    "mini_backwards": (_of_letters("backwards", lambda letters: " ".join(reversed(letters))), "exact"),
    "mini_before": (_before, "exact"),
    "mini_ends": (_of_letters("ends", lambda letters: f"{letters[0]} {letters[-1]}"), "exact"),
    "mini_first": (_of_letters("first", lambda letters: letters[0]), "exact"),
    "mini_first_value": (_of_values("first value", lambda values: values[0]), "number"),
    "mini_how_many": (_of_letters("how many", lambda letters: str(len(letters))), "number"),
    "mini_in_both": (_in_both, "exact"),
    "mini_last": (_of_letters("last", lambda letters: letters[-1]), "exact"),
    "mini_last_value": (_of_values("last value", lambda values: values[-1]), "number"),
    "mini_missing": (_missing, "exact"),
    "mini_more": (_of_values("more of ends", lambda values: max(values[0], values[-1])), "number"),
    "mini_repeat": (_of_letters("repeat", " ".join), "exact"),
    "mini_sum_of_ends": (_of_values("sum of ends", lambda values: values[0] + values[-1]), "number"),
    "mini_value_of": (_value_of, "number"),
    "mini_who_has": (_who_has, "exact"),
}
MATH: dict[str, Family] = {
    "mini_gaps": (_gaps, "number"),
    "mini_total": (_total, "number"),
    "mini_turned": (_turned, "number"),
}
CODE: dict[str, Family] = {
    "mini_kept": (_kept, "exact"),
    "mini_row": (_row, "exact"),
    "mini_ways": (_ways, "exact"),
}
UNSEEN: dict[str, Family] = {
    "mini_less": (_of_values("less of ends", lambda values: min(values[0], values[-1])), "number"),
    "mini_second": (_of_letters("second", lambda letters: letters[1]), "exact"),
    "mini_second_value": (_of_values("second value", lambda values: values[1]), "number"),
    "mini_without_first": (_of_letters("without first", lambda letters: " ".join(letters[1:])), "exact"),
}
HARD = {**MATH, **CODE}
MINI_FAMILIES = {**EASY, **HARD, **UNSEEN}
