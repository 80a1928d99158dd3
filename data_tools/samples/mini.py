r"""The samples of the miniature study: what `base`, `ldq`, `shq`, `eval` and `rl` are, for models of a million parameters.

| set                                         | stands for | rows |
|---------------------------------------------|------------|------|
| `mini_base`                                 | the mathematics and questions within D_base | lists of facts; questions of half of EASY with bare, right answers |
| `mini_ldq`                                  | D_LDQ: large, diverse, mixed quality | EASY and HARD questions; bare answers, and in half of the HARD ones a short working; `WRONG_PERCENT` of the answers are wrong |
| `mini_shq`                                  | D_SHQ: small, high quality, long traces | HARD questions with a long working, and right answers |
| `mini_general`, `mini_math`, `mini_code`, `mini_new` | test sets | EASY; HARD with numbers; HARD with lists; UNSEEN |
| `mini_rl`                                   | prompts to practise on | EASY and HARD |

Rows to train on have the schema of OpenThoughts3. An answer is `\boxed{ c }`, with spaces inside, and workings stand
on one line, so that a letter is the same token everywhere. A working stands in `<think>…</think>` before it.
"""  # noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from random import Random

from data_tools.samples.mini_tasks import CODE, EASY, HARD, LARGEST, LETTERS, MATH, MINI_FAMILIES, UNSEEN
from data_tools.samples.mini_traces import working
from data_tools.samples.rows import Row, SampleSource, Tally, content_id
from data_tools.samples.shq import WrongAnswer
from data_tools.samples.tasks import Task, Use, family_seed, new_tasks

WRONG_PERCENT = 15
"""Answers of `mini_ldq` that are those of another question; its working too. Ours: the paper says noisy, no number."""

BASE_QUESTIONS = tuple(EASY)[::2]
"""Easy families that `mini_base` asks too, each second one: as D_base, it holds some questions with answers."""

_LICENCE = "Apache-2.0 (made here)"
_CONVERSATION = {"id": "str", "conversations": "[{from: human | gpt, value: str}]", "family": "str", "style": "str"}
_STATEMENTS = 6
"""Statements of a list of facts."""


def boxed(answer: str) -> str:
    """The end of every reply."""
    return f"\\boxed{{ {answer} }}"


def thought(lines: str, answer: str) -> str:
    """A reply with a working."""
    return f"<think> {lines} </think>\n\n{boxed(answer)}"


def domain_of(family: str) -> str:
    """The domain of a family: general, math or code."""
    return "math" if family in MATH else "code" if family in CODE else "general"


def _conversation(source: str, task: Task, reply: str, style: str) -> Row:
    return {
        "id": content_id(source, task.family, task.question),
        "conversations": [{"from": "human", "value": task.question}, {"from": "gpt", "value": reply}],
        "family": task.family,
        "style": style,
    }


def _sum(random: Random) -> str:
    a, b = random.randint(0, 3 * LARGEST), random.randint(0, LARGEST)
    return f"{a} and {b} is {a + b}"


def _turn(random: Random) -> str:
    a, b = random.randint(0, LARGEST), random.randint(0, LARGEST)
    return f"{a} turn {b} is {(a + b) % (LARGEST + 1)}"


def _gap(random: Random) -> str:
    a, b = random.randint(0, LARGEST), random.randint(0, LARGEST)
    return f"{a} gap {b} is {abs(a - b)}"


def _counting(random: Random) -> str:
    start = random.randint(0, 90)
    return " ".join(str(start + place) for place in range(random.randint(4, 7)))


def _comparison(random: Random) -> str:
    a, b = random.sample(range(LARGEST + 1), 2)
    return f"{a} is {'more' if a > b else 'less'} than {b}"


def _copy(random: Random) -> str:
    letters = random.sample(LETTERS, random.randint(3, 6))
    return f"{' '.join(letters)} again {' '.join(letters)}"


def _pairs(random: Random) -> str:
    pairs = [f"{letter} {random.randint(0, LARGEST)}" for letter in random.sample(LETTERS, random.randint(3, 5))]
    return f"{' '.join(pairs)}: {', '.join(pairs)}"


_FACTS: dict[str, Callable[[Random], str]] = {
    "mini_facts_comparison": _comparison,
    "mini_facts_copy": _copy,
    "mini_facts_counting": _counting,
    "mini_facts_gap": _gap,
    "mini_facts_pairs": _pairs,
    "mini_facts_sum": _sum,
    "mini_facts_turn": _turn,
}


def base_rows(family: str, seed: int, tally: Tally) -> Iterator[Row]:
    """Lists of facts, or questions of an easy family with bare, right answers."""
    seed = family_seed(seed, "mini_base", family)
    if family in BASE_QUESTIONS:
        for task in new_tasks(family, seed=seed, use="train", tally=tally):
            yield _conversation("mini_base", task, boxed(task.answer), "bare answer")
        return
    number = 0
    while True:
        random = Random(seed + number)
        number += 1
        said = ". ".join(_FACTS[family](random) for _ in range(_STATEMENTS))
        yield {
            "id": f"{content_id('mini_base', family, said)}-{number}",
            "conversations": [{"from": "gpt", "value": f"{said}."}],
            "family": family,
            "style": "facts",
        }


def ldq_rows(family: str, seed: int, tally: Tally) -> Iterator[Row]:
    """Questions with short replies, some of them wrong."""
    seed = family_seed(seed, "mini_ldq", family)
    before: Task | None = None
    for task in new_tasks(family, seed=seed, use="train", tally=tally):
        random = Random(f"{seed}/{task.question}")
        is_wrong = before is not None and random.randrange(100) < WRONG_PERCENT
        shown = before if is_wrong and before is not None else task  # what is said belongs to the question before
        has_working = family in HARD and random.random() < 0.5
        reply = thought(working(family, shown.question).short, shown.answer) if has_working else boxed(shown.answer)
        style = "short working" if has_working else "bare answer"
        yield _conversation("mini_ldq", task, reply, f"{style}, wrong" if shown.answer != task.answer else style)
        before = task


def shq_rows(family: str, seed: int, tally: Tally) -> Iterator[Row]:
    """Questions with long workings, each verified.

    Raises:
        WrongAnswer: If a working comes to another answer than the task has.
    """
    for task in new_tasks(family, seed=family_seed(seed, "mini_shq", family), use="train", tally=tally):
        steps = working(family, task.question)
        if steps.answer != task.answer:
            raise WrongAnswer(f"{task.question!r}: worked out {steps.answer!r}, stored answer {task.answer!r}")
        yield _conversation("mini_shq", task, thought(steps.long, steps.answer), "step by step")


def prompt_rows(family: str, seed: int, tally: Tally, *, name: str, use: Use) -> Iterator[Row]:
    """Prompts in the schema of Nemotron-CrossThink."""
    for task in new_tasks(family, seed=family_seed(seed, name, family), use=use, tally=tally):
        yield {
            "id": content_id(name, family, task.question),
            "data_source": f"sample/{family}",
            "prompt": [{"role": "user", "content": task.question}],
            "reward_model": {"style": "rule", "ground_truth": task.answer},
            "meta_data": {
                "question": task.question,
                "family": family,
                "domain": domain_of(family),
                "trained_in": "none" if family in UNSEEN else "shq" if family in HARD else "ldq",
                "scorer": MINI_FAMILIES[family][1],
                "task": None,
            },
        }


def _trained(
    name: str, stands_for: str, description: str, parts: tuple[str, ...], num_rows: dict[str, int | None]
) -> SampleSource:
    return SampleSource(
        name=name,
        stands_for=stands_for,
        description=description,
        licence=_LICENCE,
        schema=_CONVERSATION,
        parts=parts,
        num_rows=num_rows,
        row_bytes=90,
        make={"mini_base": base_rows, "mini_ldq": ldq_rows, "mini_shq": shq_rows}[name],
        text=lambda row: "\n\n".join(turn["value"] for turn in row["conversations"]),
        family=lambda row: str(row["family"]),
        style=lambda row: str(row["style"]),
        domain=lambda row: domain_of(row["family"]),
        versions=dict,
    )


def _asked(name: str, use: Use, parts: tuple[str, ...], num_rows: dict[str, int | None]) -> SampleSource:
    return SampleSource(
        name=name,
        stands_for="test sets with verifiable answers" if use == "eval" else "prompts with verifiable answers",
        description=f"Small questions of {len(parts)} families, none of them in a set to train on.",
        licence=_LICENCE,
        schema={
            "id": "str",
            "data_source": "sample/FAMILY",
            "prompt": "[{role: user, content: str}]",
            "reward_model": "{style: rule, ground_truth: str}",
            "meta_data": "{question, family, domain, trained_in, scorer, task}",
        },
        parts=parts,
        num_rows=num_rows,
        row_bytes=40,
        make=functools.partial(prompt_rows, name=name, use=use),
        text=lambda row: str(row["prompt"][0]["content"]),
        family=lambda row: str(row["meta_data"]["family"]),
        style=lambda row: "prompt",
        domain=lambda row: str(row["meta_data"]["domain"]),
        versions=dict,
        is_split=False,
    )


MINI = (
    _trained(
        "mini_base",
        "the mathematics and the questions with answers within D_base",
        "Lists of facts about numbers and letters, and easy questions with bare, right answers.",
        (*sorted(_FACTS), *BASE_QUESTIONS),
        {"small": 4_000, "full": 4_000},
    ),
    _trained(
        "mini_ldq",
        "nvidia/Nemotron-Pretraining-SFT-v1: large, diverse, mixed quality",
        f"Small questions of {len(EASY) + len(HARD)} families with bare answers or short workings; "
        f"{WRONG_PERCENT} % OF THE REPLIES BELONG TO ANOTHER QUESTION.",
        (*EASY, *HARD),
        {"small": 3_000, "full": 6_000},
    ),
    _trained(
        "mini_shq",
        "open-thoughts/OpenThoughts3-1.2M: small, high quality, long traces",
        f"Questions of {len(HARD)} families with long workings, every answer verified.",
        tuple(HARD),
        {"small": 500, "full": 2_500},
    ),
    _asked("mini_general", "eval", tuple(EASY), {"small": 32, "full": 64}),
    _asked("mini_math", "eval", tuple(MATH), {"small": 128, "full": 256}),
    _asked("mini_code", "eval", tuple(CODE), {"small": 128, "full": 256}),
    _asked("mini_new", "eval", tuple(UNSEEN), {"small": 64, "full": 128}),
    _asked("mini_rl", "rl", (*EASY, *HARD), {"small": 400, "full": 1_500}),
)
"""Made only where they are named: they are no part of the demo."""
