r"""The `shq` sample: few families, long traces, each verified before it is written.

Questions come from reasoning-gym; the traces are our own (`traces.py`). A row is in the schema of
OpenThoughts3: `conversations` of a human turn and a gpt turn, which holds the working in
`<think>…</think>` and the answer in `\boxed{}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data_tools.errors import UsageError
from data_tools.samples.rows import (
    Row,
    SampleSource,
    Tally,
    ask,
    content_id,
    family_seed,
    reasoning_gym,
    reasoning_gym_versions,
)
from data_tools.samples.traces import TRACE_WRITERS, NoSingleAnswer

FAMILIES: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 3, "max_terms": 7, "min_digits": 2, "max_digits": 5},
    "gcd": {"min_numbers": 2, "max_numbers": 3, "min_value": 100, "max_value": 1_000_000},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 4},
    "simple_equations": {"min_terms": 2, "max_terms": 4, "min_value": 1, "max_value": 100},
}
"""Families and their difficulty, in reasoning-gym's words; none of them is in `ldq`."""


class WrongAnswer(RuntimeError):
    """A trace whose answer the task's scorer does not accept: a bug of ours, never a row to drop."""


_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def shq_rows(seed: int, tally: Tally) -> Iterator[Row]:
    """Rows without end, the families in turn.

    Raises:
        SetupError: If reasoning-gym is not installed.
        WrongAnswer: If a trace does not reach the answer that the task's scorer accepts.
    """
    library = reasoning_gym()
    streams = {
        family: ask(library, family, family_seed(seed, "shq", family), options) for family, options in FAMILIES.items()
    }
    seen: set[str] = set()
    while True:
        for family, stream in streams.items():
            yield _next_row(family, stream, seen, tally)


def _next_row(family: str, stream: Iterator[tuple[Any, dict[str, Any]]], seen: set[str], tally: Tally) -> Row:
    for scorer, task in stream:
        question = task["question"].strip()
        if question in seen:
            tally.left_out["question made before"] += 1
            continue
        seen.add(question)
        try:
            row = _row(family, question)
        except NoSingleAnswer:
            tally.left_out["question without a single answer"] += 1
            continue
        verify(row, scorer, task)
        return row
    raise UsageError(f"--scale: the {family} tasks are used up; lower --scale")


def _row(family: str, question: str) -> Row:
    trace = TRACE_WRITERS[family](question)
    working = "\n".join(trace.lines)
    return {
        "id": content_id("shq", family, question),
        "conversations": [
            {"from": "human", "value": f"{question}\n\nReason step by step and put the final answer in \\boxed{{}}."},
            {
                "from": "gpt",
                "value": f"<think>\n{working}\n</think>\n\nThe answer is \\boxed{{{trace.answer}}}.",
            },
        ],
        "domain": "math",
        "difficulty": trace.difficulty,
        "source": f"reasoning-gym/{family}",
    }


def verify(row: Row, scorer: Any, task: dict[str, Any]) -> None:
    r"""Scores what stands in `\boxed{}` after the trace with the task's own scorer.

    Args:
        row: A row of this sample.
        scorer: The reasoning-gym data set of the task.
        task: The task, with its stored answer.

    Raises:
        WrongAnswer: If there is not exactly one boxed answer, or the scorer does not accept it.
    """
    _, _, after_trace = row["conversations"][1]["value"].partition("</think>")
    boxed = _BOXED.findall(after_trace)
    if len(boxed) != 1:
        raise WrongAnswer(f"{row['id']}: {len(boxed)} boxed answers after the trace, not 1")
    score = scorer.score_answer(boxed[0], task)
    if score != 1.0:
        raise WrongAnswer(
            f"{row['id']}: the task's scorer gives {boxed[0]!r} a score of {score}; "
            f"question: {task['question']!r}, stored answer: {task['answer']!r}"
        )


def _text(row: Row) -> str:
    return "\n\n".join(turn["value"] for turn in row["conversations"])


SHQ = SampleSource(
    name="shq",
    stands_for="open-thoughts/OpenThoughts3-1.2M: small, high quality, long traces",
    description=(
        "Questions of four arithmetic families of reasoning-gym with step-by-step traces written by rule; "
        "every final answer is accepted by the task's scorer."
    ),
    licence="Apache-2.0 (questions from reasoning-gym, Apache-2.0; traces made here)",
    schema={
        "id": "str",
        "conversations": "[{from: human | gpt, value: str}]",
        "domain": "str",
        "difficulty": "int, 1 to 10",
        "source": "str",
    },
    default_bytes=1_500_000,
    rows=shq_rows,
    text=_text,
    family=lambda row: str(row["source"]).removeprefix("reasoning-gym/"),
    versions=reasoning_gym_versions,
)
