"""Traces of logic: knights and knaves by cases, circuits gate by gate."""

from __future__ import annotations

import itertools
import re
from typing import Any

from data_tools.samples.traces.trace import Facts, Trace

_SIMPLE = ("telling-truth", "lying")
_GATES = {"&": "AND", "↑": "NAND", "⊕": "XOR", "↓": "NOR", "+": "OR"}


def knights_and_knaves(question: str, facts: Facts) -> Trace:
    """Every case is tried until a statement contradicts it; exactly one is left."""
    names = [str(name) for name in facts["names"]]
    terms = facts["knight_knave_terms"]
    roles = {True: str(terms["a_knight"]), False: str(terms["a_knave"])}
    statements = facts["statements"]
    said = [_sentence(statement, names, roles) for statement in statements]
    lines = ["What each one says:", *(f"  {name}: {words}." for name, words in zip(names, said, strict=True))]
    lines.append(f"What {roles[True]} says must be true, what {roles[False]} says must be false. I try every case.")
    left = []
    for number, case in enumerate(itertools.product((True, False), repeat=len(names)), start=1):
        lines.append(f"Case {number}: {_roles(names, case, roles)}.")
        for name, role, statement, words in zip(names, case, statements, said, strict=True):
            value = _holds(statement, case)
            fits = "as it must be" if value == role else "a contradiction"
            lines.append(f"  {name} is {roles[role]} and says: {words}. That is {_word(value)}, {fits}.")
            if value != role:
                break
        else:
            lines.append("  Nothing contradicts this case.")
            left.append((number, case))
    assert len(left) == 1, f"{len(left)} cases are left: {question!r}"
    number, case = left[0]
    return Trace((*lines, f"All cases were tried, and case {number} alone is left."), _roles(names, case, roles))


def _word(value: bool) -> str:
    return "true" if value else "false"


def _roles(names: list[str], case: tuple[bool, ...], roles: dict[bool, str]) -> str:
    *first, last = [f"{name} is {roles[role]}" for name, role in zip(names, case, strict=True)]
    return f"{', '.join(first)}, and {last}"


def _sentence(statement: Any, names: list[str], roles: dict[bool, str]) -> str:
    kind, *parts = statement
    if kind in _SIMPLE:
        return f"{names[parts[0]]} is {roles[kind == _SIMPLE[0]]}"
    if kind == "not" and parts[0][0] in _SIMPLE:
        other, person = parts[0]
        return _sentence((_SIMPLE[other == _SIMPLE[0]], person), names, roles)
    words = [_sentence(part, names, roles) for part in parts]
    words = [word if part[0] in _SIMPLE else f"({word})" for part, word in zip(parts, words, strict=True)]
    if kind == "not":
        return f"it is not so that {words[0]}"
    if kind == "->":
        return f"if {words[0]} then {words[1]}"
    return (" if and only if " if kind == "<=>" else f" {kind} ").join(words)


def _holds(statement: Any, case: tuple[bool, ...]) -> bool:
    kind, *parts = statement
    if kind in _SIMPLE:
        return bool(case[parts[0]] == (kind == _SIMPLE[0]))
    values = [_holds(part, case) for part in parts]
    if kind == "not":
        return not values[0]
    if kind in ("and", "or"):
        return all(values) if kind == "and" else any(values)
    assert kind in ("->", "<=>"), f"an unknown connective: {kind!r}"
    return values[0] == values[1] if kind == "<=>" else not values[0] or values[1]


def circuit(question: str, facts: Facts) -> Trace:
    """The gates of the first column, then the last one, each from the values at its inputs."""
    assignments: dict[str, int] = facts["assignments"]
    lines = [f"The inputs are {', '.join(f'{name} = {value}' for name, value in assignments.items())}."]
    outputs = []
    for number, term in enumerate(facts["term_strings"], start=1):
        more, output = _gate(f"Gate {number}", term, assignments)
        lines += more
        outputs.append(output)
    last = str(facts["final_gate"])
    value = _apply(last, outputs)
    lines.append(f"The last gate is {_article(last)} of the outputs {', '.join(map(str, outputs))}.")
    lines.append(f"  That is {value}, {_why(last, outputs)}.")
    return Trace(tuple(lines), str(value))


def _gate(name: str, term: str, assignments: dict[str, int]) -> tuple[list[str], int]:
    inputs = re.findall(r"([A-Z]+)('?)", term)
    signs = set(re.sub(r"[A-Z']", "", term))
    assert len(signs) == 1, f"not one gate: {term!r}"
    gate = _GATES[signs.pop()]
    named = ", ".join(f"not {letter}" if negated else letter for letter, negated in inputs)
    lines = [f"{name} is {_article(gate)} of {named}."]
    values = []
    for letter, negated in inputs:
        value = 1 - assignments[letter] if negated else assignments[letter]
        values.append(value)
        lines.append(
            f"  not {letter} is not {assignments[letter]}, that is {value}" if negated else f"  {letter} is {value}"
        )
    output = _apply(gate, values)
    return [*lines, f"  {gate} of {', '.join(map(str, values))} is {output}, {_why(gate, values)}."], output


def _article(gate: str) -> str:
    return f"{'a' if gate.startswith('N') else 'an'} {gate}"


def _apply(gate: str, values: list[int]) -> int:
    ones = sum(values)
    return int(
        {
            "AND": ones == len(values),
            "NAND": ones < len(values),
            "OR": ones > 0,
            "NOR": ones == 0,
            "XOR": ones % 2 == 1,
        }[gate]
    )


def _why(gate: str, values: list[int]) -> str:
    ones = sum(values)
    if gate == "XOR":
        return f"because {ones} of them, {'an odd' if ones % 2 else 'an even'} number, {'is' if ones == 1 else 'are'} 1"
    if gate in ("AND", "NAND"):
        return "because all are 1" if ones == len(values) else "because not all are 1"
    return "because one of them is 1" if ones else "because none is 1"
