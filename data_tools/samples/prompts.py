r"""The `eval` and `rl` samples: prompts with verifiable answers, to be tested with and to practise on.

No prompt is a question of `ldq`, of `shq` or of the other set, whatever the seeds and sizes: what a
question is used for hangs on its text (`tasks.use_of`). Both sets ask the families of `ldq` and `shq`
whose answers can be told right from wrong; `eval` asks `UNSEEN` families beside them, which no other
set has. A row is in the schema of Nemotron-CrossThink, with more in `meta_data`:

| field        | holds |
|--------------|-------|
| id           | of the question |
| data_source  | reasoning-gym/FAMILY, sample/FAMILY |
| prompt       | [{role: user, content}]: the question and where to put the answer |
| reward_model | {style: rule, ground_truth}: the answer |
| meta_data    | question; family; domain; trained_in: ldq, shq, none; scorer: of `data_tools.scoring`; task: what the scorer reasoning-gym needs, else null |
"""  # noqa: E501

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import orjson

from data_tools.samples.ldq_families import DOMAIN_OF
from data_tools.samples.rows import Row, SampleSource, Tally, content_id
from data_tools.samples.shq import INSTRUCTION, LOGIC
from data_tools.samples.tasks import OWN_FAMILIES, Task, Use, family_seed, new_tasks, reasoning_gym_versions
from data_tools.samples.traces import TRACE_WRITERS
from data_tools.scoring import SAFE_TASKS, final_answer, is_right

UNSEEN = {"arc_1d": "exact", "color_cube_rotation": "exact", "maze": "number"}
"""Families that evaluation alone asks for, with their scorers."""

SCORER_OF = {
    **dict.fromkeys(
        (
            "basic_arithmetic", "binary_alternation", "chain_sum", "circuit_logic", "coin_flip", "count_bits",
            "count_primes", "decimal_chain_sum", "dice", "gcd", "gsm_symbolic", "largest_island", "lcm",
            "leg_counting", "letter_counting", "number_sequence", "products", "rotten_oranges", "self_reference",
            "simple_equations", "simple_geometry",
        ),
        "number",
    ),
    **dict.fromkeys(
        (
            "ab", "aiw", "base_conversion", "caesar_cipher", "calendar_arithmetic", "course_schedule",
            "family_relationships", "linear_systems", "mini_sudoku", "needle_haystack", "path_star",
            "prime_factorization", "rotate_matrix", "spell_backward", "spiral_matrix", "string_insertion",
            "string_manipulation", "syllogism", "word_sequence_reversal", "word_sorting",
        ),
        "exact",
    ),
    **dict.fromkeys(("complex_arithmetic", "polynomial_products"), "polynomial"),
    **dict.fromkeys(sorted(SAFE_TASKS), "reasoning-gym"),
    **UNSEEN,
}  # fmt: skip
"""Families that prompts ask for.

Left out are those with many right answers whose scorer may not see a model's answer, and those whose
answers are rounded.
"""


def prompt_rows(family: str, seed: int, tally: Tally, *, use: Use) -> Iterator[Row]:
    """Prompts of a family, until it has no new question.

    Args:
        family: One of `SCORER_OF`.
        seed: Decides the questions.
        tally: Counts what is left out.
        use: For evaluation or for practice.

    Raises:
        SetupError: If reasoning-gym is not installed.
    """
    for task in new_tasks(family, seed=family_seed(seed, use, family), use=use, tally=tally):
        row = _row(task, use)
        # an empty stored answer, which reasoning-gym accepts, is none that a box can hold
        reply = f"<think>\n</think>\n\nThe answer is \\boxed{{{task.answer}}}."
        if not task.answer or not accepts(row, reply):
            tally.left_out[f"stored answer of {family} that its scorer refuses in a box"] += 1
            continue
        yield row


def accepts(row: Row, reply: str) -> bool:
    """Whether a reply to a prompt is right."""
    said, about = final_answer(reply), row["meta_data"]
    return is_right(said, row["reward_model"]["ground_truth"], scorer=about["scorer"], task=about["task"])


def _row(task: Task, use: Use) -> Row:
    trained_in = "shq" if task.family in TRACE_WRITERS else "ldq" if task.family in DOMAIN_OF else "none"
    scorer = SCORER_OF[task.family]
    return {
        "id": content_id(use, task.family, task.question),
        "data_source": f"{'sample' if task.family in OWN_FAMILIES else 'reasoning-gym'}/{task.family}",
        "prompt": [{"role": "user", "content": f"{task.question}\n\n{INSTRUCTION}"}],
        "reward_model": {"style": "rule", "ground_truth": task.answer},
        "meta_data": {
            "question": task.question,
            "family": task.family,
            "domain": _domain(task.family),
            "trained_in": trained_in,
            "scorer": scorer,
            "task": _scorer_task(task) if scorer == "reasoning-gym" else None,
        },
    }


def _domain(family: str) -> str:
    return "general" if family in LOGIC or family in UNSEEN else DOMAIN_OF.get(family, "math")


def _scorer_task(task: Task) -> dict[str, Any]:
    """The task as JSON can hold it: numpy's strings become strings, tuples lists."""
    facts = {name: value for name, value in task.facts.items() if name not in ("difficulty", "source_index")}
    made = orjson.loads(orjson.dumps(facts, default=str, option=orjson.OPT_SERIALIZE_NUMPY))
    return {"family": task.family, "metadata": made}


def _prompts(use: Use, families: tuple[str, ...], *, num_rows: dict[str, int | None], about: str) -> SampleSource:
    return SampleSource(
        name=use,
        stands_for=about,
        description=(
            f"Questions of {len(families)} task families with verifiable answers, none of them in another sample; "
            "every answer is accepted by the task's scorer, and by the named scorer when it stands in a box."
        ),
        licence="Apache-2.0 (questions from reasoning-gym, Apache-2.0, and made here)",
        schema={
            "id": "str",
            "data_source": "reasoning-gym/FAMILY | sample/FAMILY",
            "prompt": "[{role: user, content: str}]",
            "reward_model": "{style: rule, ground_truth: str}",
            "meta_data": "{question, family, domain, trained_in, scorer, task}",
        },
        parts=families,
        num_rows=num_rows,
        row_bytes=500,
        make=functools.partial(prompt_rows, use=use),
        text=lambda row: str(row["prompt"][0]["content"]),
        family=lambda row: str(row["meta_data"]["family"]),
        style=lambda row: "prompt",
        domain=lambda row: str(row["meta_data"]["domain"]),
        versions=reasoning_gym_versions,
        is_split=False,
    )


EVAL = _prompts(
    "eval",
    tuple(sorted(SCORER_OF)),
    num_rows={"small": 8, "full": 50},
    about="test sets with verifiable answers",
)
RL = _prompts(
    "rl",
    tuple(sorted(set(SCORER_OF) - set(UNSEEN))),
    num_rows={"small": 16, "full": 400},
    about="nvidia/Nemotron-CrossThink: prompts with verifiable answers",
)
