r"""The `shq` sample: few families, long traces, each verified before it is written.

The traces are our own (`traces/`). A row is in the schema of OpenThoughts3: `conversations` of a human
turn and a gpt turn, which holds the working in `<think>…</think>` and the answer in `\boxed{}`.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_tools.samples.rows import Row, SampleSource, Tally, content_id
from data_tools.samples.tasks import OWN_FAMILIES, Task, family_seed, new_tasks, reasoning_gym_versions
from data_tools.samples.traces import TRACE_WRITERS
from data_tools.samples.traces.trace import NoSingleAnswer
from data_tools.scoring import read_reply

LOGIC = frozenset({"circuit_logic", "knights_knaves"})
"""Families that are not mathematics."""

INSTRUCTION = "Reason step by step and put the final answer in \\boxed{}."
"""Ends every prompt whose answer is looked for in a box."""


class WrongAnswer(RuntimeError):
    """A trace whose answer the task's scorer does not accept: a bug of ours, never a row to drop."""


def shq_rows(family: str, seed: int, tally: Tally) -> Iterator[Row]:
    """Rows of a family, until it has no new question.

    Raises:
        SetupError: If reasoning-gym is not installed.
        WrongAnswer: If a trace does not reach the answer that the task's scorer accepts.
    """
    for task in new_tasks(family, seed=family_seed(seed, "shq", family), use="train", tally=tally):
        try:
            row = _row(task)
        except NoSingleAnswer:
            tally.left_out["question without a single answer"] += 1
            continue
        verify(row, task)
        yield row


def _row(task: Task) -> Row:
    trace = TRACE_WRITERS[task.family](task.question, task.facts)
    working = "\n".join(trace.lines)
    return {
        "id": content_id("shq", task.family, task.question),
        "conversations": [
            {"from": "human", "value": f"{task.question}\n\n{INSTRUCTION}"},
            {"from": "gpt", "value": f"<think>\n{working}\n</think>\n\nThe answer is \\boxed{{{trace.answer}}}."},
        ],
        "domain": "general" if task.family in LOGIC else "math",
        "difficulty": trace.difficulty,
        "source": f"{'sample' if task.family in OWN_FAMILIES else 'reasoning-gym'}/{task.family}",
    }


def verify(row: Row, task: Task) -> None:
    r"""Scores what stands in `\boxed{}` after the trace with the task's own scorer.

    Raises:
        WrongAnswer: If there is not exactly one boxed answer, or the scorer does not accept it.
    """
    boxed = read_reply(row["conversations"][1]["value"]).boxed
    if len(boxed) != 1:
        raise WrongAnswer(f"{row['id']}: {len(boxed)} boxed answers after the trace, not 1")
    score = task.score(boxed[0])
    if score != 1.0:
        raise WrongAnswer(
            f"{row['id']}: the task's scorer gives {boxed[0]!r} a score of {score}; "
            f"question: {task.question!r}, stored answer: {task.answer!r}"
        )


SHQ = SampleSource(
    name="shq",
    stands_for="open-thoughts/OpenThoughts3-1.2M: small, high quality, long traces",
    description=(
        f"Questions of {len(TRACE_WRITERS)} families of arithmetic, algebra and logic with step-by-step traces "
        "written by rule, which check themselves; every final answer is accepted by the task's scorer."
    ),
    licence="Apache-2.0 (questions from reasoning-gym, Apache-2.0, and made here; traces made here)",
    schema={
        "id": "str",
        "conversations": "[{from: human | gpt, value: str}]",
        "domain": "math | general",
        "difficulty": "int, 1 to 10",
        "source": "reasoning-gym/FAMILY | sample/FAMILY",
    },
    parts=tuple(sorted(TRACE_WRITERS)),
    num_rows={"small": 70, "full": 700},
    row_bytes=2_500,
    make=shq_rows,
    text=lambda row: "\n\n".join(turn["value"] for turn in row["conversations"]),
    family=lambda row: str(row["source"]).partition("/")[2],
    style=lambda row: "step by step",
    domain=lambda row: str(row["domain"]),
    versions=reasoning_gym_versions,
)
