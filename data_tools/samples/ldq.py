"""The `ldq` sample: many task families, short or no reasoning, mixed quality.

Questions and answers come from reasoning-gym; a task whose stored answer its own scorer refuses is left
out and counted. The quality is mixed in form, not in truth: word problems come with the library's own wordy reasoning,
some families with a sentence of ours, most with the bare answer. A row has the keys `id` and `text`
of Nemotron-Pretraining-SFT, and `domain`, `category` and `has_reasoning` beside them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from data_tools.samples.ldq_families import FAMILIES_BY_DOMAIN, OPTIONS, REASONING
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

_DOMAINS = {family: domain for domain, families in FAMILIES_BY_DOMAIN.items() for family in families}
_MOST_LOOKED_AT = 200
"""Tasks looked at for one row; a family that has no new one among them is left out from there."""


def ldq_rows(seed: int, tally: Tally) -> Iterator[Row]:
    """Rows, the families in turn, until none has a new question.

    Raises:
        SetupError: If reasoning-gym is not installed.
    """
    library = reasoning_gym()
    streams = {
        family: ask(library, family, family_seed(seed, "ldq", family), OPTIONS.get(family, {}))
        for family in sorted(_DOMAINS)
    }
    seen: set[str] = set()
    while streams:
        for family in list(streams):
            task = _next_task(streams[family], seen, tally)
            if task is None:
                tally.left_out[f"family {family} has no new question"] += 1
                del streams[family]
                continue
            yield _row(family, task)


def _next_task(stream: Iterator[tuple[Any, dict[str, Any]]], seen: set[str], tally: Tally) -> dict[str, Any] | None:
    """The next task with a new question and a stored answer that its own scorer accepts."""
    for scorer, task in itertools.islice(stream, _MOST_LOOKED_AT):
        if task["question"] in seen:
            tally.left_out["question made before"] += 1
            continue
        seen.add(task["question"])
        # Seen in reasoning-gym 0.1.25: empty answers of string_manipulation, negative ages in gsm_symbolic.
        if scorer.score_answer(task["answer"], task) != 1.0:
            tally.left_out[f"stored answer refused by the scorer of {task['metadata']['source_dataset']}"] += 1
            continue
        return task
    return None


def _row(family: str, task: dict[str, Any]) -> Row:
    question, answer = task["question"].strip(), task["answer"].strip()
    reasoning = REASONING[family](task["metadata"]) if family in REASONING else ""
    parts = [question, reasoning, f"Answer: {answer}"]
    return {
        "id": content_id("ldq", family, question),
        "text": "\n\n".join(part for part in parts if part),
        "domain": _DOMAINS[family],
        "category": family,
        "has_reasoning": bool(reasoning),
    }


LDQ = SampleSource(
    name="ldq",
    stands_for="nvidia/Nemotron-Pretraining-SFT-v1: large, diverse, mixed quality",
    description=(
        f"Questions with answers, some with short reasoning, of {len(_DOMAINS)} task families of reasoning-gym; "
        "every answer is accepted by the task's scorer, the reasoning is not checked."
    ),
    licence="Apache-2.0 (reasoning-gym)",
    schema={
        "id": "str",
        "text": "question, short reasoning where there is any, answer",
        "domain": "math | code | general",
        "category": "the task family",
        "has_reasoning": "bool",
    },
    default_bytes=2_000_000,
    rows=ldq_rows,
    text=lambda row: str(row["text"]),
    family=lambda row: str(row["category"]),
    versions=reasoning_gym_versions,
)
