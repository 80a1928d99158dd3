"""The `ldq` sample: many task families, short or no reasoning, mixed quality.

The quality is mixed in form, not in truth: word problems come with reasoning-gym's own wordy
reasoning, some families with a sentence of ours, most with the bare answer. A row has the keys `id` and
`text` of Nemotron-Pretraining-SFT, and `domain`, `category` and `has_reasoning` beside them.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_tools.samples.ldq_families import DOMAIN_OF, reasoning
from data_tools.samples.rows import Row, SampleSource, Tally, content_id
from data_tools.samples.tasks import Task, family_seed, new_tasks, reasoning_gym_versions


def ldq_rows(family: str, seed: int, tally: Tally) -> Iterator[Row]:
    """Rows of a family, until it has no new question.

    Raises:
        SetupError: If reasoning-gym is not installed.
    """
    tasks = new_tasks(family, seed=family_seed(seed, "ldq", family), use="train", tally=tally)
    return map(_row, tasks)


def _row(task: Task) -> Row:
    thought = reasoning(task.family, task.facts)
    parts = [task.question, thought, f"Answer: {task.answer}"]
    return {
        "id": content_id("ldq", task.family, task.question),
        "text": "\n\n".join(part for part in parts if part),
        "domain": DOMAIN_OF[task.family],
        "category": task.family,
        "has_reasoning": bool(thought),
    }


LDQ = SampleSource(
    name="ldq",
    stands_for="nvidia/Nemotron-Pretraining-SFT-v1: large, diverse, mixed quality",
    description=(
        f"Questions with answers, some with short reasoning, of {len(DOMAIN_OF)} task families of reasoning-gym; "
        "every answer is accepted by the task's scorer, the reasoning is not checked."
    ),
    licence="Apache-2.0 (reasoning-gym)",
    schema={
        "id": "str",
        "text": "question, short reasoning where there is any, `Answer: ` and the answer",
        "domain": "math | code | general",
        "category": "the task family",
        "has_reasoning": "bool",
    },
    parts=tuple(sorted(DOMAIN_OF)),
    num_rows={"small": 85, "full": 2_400},
    row_bytes=500,
    make=ldq_rows,
    text=lambda row: str(row["text"]),
    family=lambda row: str(row["category"]),
    style=lambda row: "short reasoning" if row["has_reasoning"] else "answer only",
    domain=lambda row: str(row["domain"]),
    versions=reasoning_gym_versions,
)
