r"""The `digit`, `digit_eval` and `form` samples: a task for a first look at RL, and conversations of its form alone.

All ask for the last digit of a number of four digits. `digit` holds prompts with their answers, to be rewarded, and
`digit_eval` prompts to be tested with. `form` holds conversations to be fine-tuned on, whose answers are drawn at
random: a model that has read them puts some digit in a box, and is right one time in ten. So what it knows of the task
afterwards it has from rewards. No question is in two of them (`tasks.use_of`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random

from data_tools.samples.rows import Row, SampleSource, Tally, content_id
from data_tools.samples.tasks import Use, family_seed, new_tasks

FAMILY = "last_digit"
_LICENCE = "Apache-2.0 (made here)"


def digit_rows(family: str, seed: int, tally: Tally, *, name: str, use: Use) -> Iterator[Row]:
    """Prompts with right answers, in the schema of Nemotron-CrossThink, until there is no new question."""
    for task in new_tasks(family, seed=family_seed(seed, name, family), use=use, tally=tally):
        yield {
            "id": content_id(name, family, task.question),
            "data_source": f"sample/{family}",
            "prompt": [{"role": "user", "content": task.question}],
            "reward_model": {"style": "rule", "ground_truth": task.answer},
            "meta_data": {"question": task.question, "family": family, "domain": "math", "scorer": "exact"},
        }


def form_rows(family: str, seed: int, tally: Tally) -> Iterator[Row]:
    """Conversations with random answers, until there is no new question."""
    seed = family_seed(seed, "form", family)
    for task in new_tasks(family, seed=seed, use="train", tally=tally):
        answer = Random(f"{seed}/{task.question}").choice("0123456789")
        yield {
            "id": content_id("form", family, task.question),
            "messages": [
                {"role": "user", "content": task.question},
                {"role": "assistant", "content": f"\\boxed{{{answer}}}"},
            ],
            "family": family,
            "is_right": answer == task.answer,
        }


def _prompts(name: str, use: Use, stands_for: str, num_rows: dict[str, int | None]) -> SampleSource:
    return SampleSource(
        name=name,
        stands_for=stands_for,
        description="The last digit of a number of four digits; a tenth of all answers is right by chance.",
        licence=_LICENCE,
        schema={
            "id": "str",
            "data_source": "sample/last_digit",
            "prompt": "[{role: user, content: str}]",
            "reward_model": "{style: rule, ground_truth: 0 to 9}",
            "meta_data": "{question, family, domain, scorer}",
        },
        parts=(FAMILY,),
        num_rows=num_rows,
        row_bytes=70,
        make=partial(digit_rows, name=name, use=use),
        text=lambda row: str(row["prompt"][0]["content"]),
        family=lambda row: str(row["meta_data"]["family"]),
        style=lambda row: "prompt",
        domain=lambda row: "math",
        versions=dict,
        is_split=False,
    )


DIGIT = _prompts(
    "digit",
    "rl",
    "nvidia/Nemotron-CrossThink: prompts with verifiable answers, for a first run",
    {"small": 768, "full": 1_500},
)
DIGIT_EVAL = _prompts("digit_eval", "eval", "a test of what rewards on digit teach", {"small": 256, "full": 480})
FORM = SampleSource(
    name="form",
    stands_for="nothing: it shows the form of an answer to the prompts of digit, and no way to it",
    description="Questions as in digit, others than its prompts, with ANSWERS DRAWN AT RANDOM in a box.",
    licence=_LICENCE,
    schema={
        "id": "str",
        "messages": "[{role: user | assistant, content: str}]",
        "family": "last_digit",
        "is_right": "bool",
    },
    parts=(FAMILY,),
    num_rows={"small": 320, "full": 3_000},
    row_bytes=70,
    make=form_rows,
    text=lambda row: "\n\n".join(turn["content"] for turn in row["messages"]),
    family=lambda row: str(row["family"]),
    style=lambda row: "random answer",
    domain=lambda row: "math",
    versions=dict,
)
