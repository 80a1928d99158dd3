"""Our rewards inside another engine: the same scorers, in processes that may be ended, with the same weights.

Runs where the engine runs, so it imports nothing but Python's own library: scorers load theirs when they are asked.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from megatron_ext.objectives.rewards import RewardOptions, RewardParts, RewardPool, prompt_name, question_of

if TYPE_CHECKING:
    from data_tools.prompts import PromptRow

_WORKERS = 4


def encode_question(row: PromptRow) -> str:
    """What a scorer has to know of a prompt, as text that fits in one field of a row.

    Args:
        row: The prompt, its scorer filled in.
    """
    known = {"name": prompt_name(row.record), "opening": row.opening, **question_of(row.record)}
    return json.dumps(known, ensure_ascii=False, sort_keys=True)


def make_pool(rewards: Mapping[str, Any]) -> RewardPool:
    """Starts the processes that score.

    Args:
        rewards: The recipe's `rl.rewards`: accuracy, format, accuracy_and_format, timeout_s, on_error.
    """
    names = ("accuracy", "format", "accuracy_and_format")
    options = RewardOptions(
        weights={name.replace("_", "-"): rewards[name] for name in names if rewards[name]},
        on_error="raise" if rewards["on_error"] == "stop" else "count",
    )
    return RewardPool(options, num_workers=_WORKERS, time_limit_s=rewards["timeout_s"])


def score(pool: RewardPool, replies: list[str], questions: list[str]) -> list[RewardParts]:
    """Scores replies, in order.

    Args:
        pool: From `make_pool`.
        replies: As decoded, without the token that ended them.
        questions: Of each, from `encode_question`.
    """
    futures = []
    for question, text in zip(questions, replies, strict=True):
        asked = json.loads(question)
        futures.append(pool.submit(_row_of(asked), asked["opening"] + text))
    return [future.result() for future in futures]


def make_compute_score(**rewards: Any) -> Callable[..., dict[str, float]]:
    """The reward function of verl: `custom_reward_function.name` in a file that calls this.

    Args:
        **rewards: The recipe's `rl.rewards`, as in `make_pool`.

    Returns:
        A function of data_source, solution_str, ground_truth and extra_info, whose `question` is of `encode_question`.
        It gives the reward as `score`, whether the answer is right as `acc` (verl's name of what it validates by), the
        format, and whether scoring ended by itself.
    """
    lock, pools = threading.Lock(), list[RewardPool]()

    def compute_score(
        data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any], **_: Any
    ) -> dict[str, float]:
        with lock:  # verl calls it from several threads of one process
            if not pools:
                pools.append(make_pool(rewards))
        (found,) = score(pools[0], [solution_str], [extra_info["question"]])
        return {
            "score": found.total,
            "acc": found.parts["accuracy"],
            "format": found.parts["format"],
            "scored": float(found.outcome == "scored"),
        }

    return compute_score


def _row_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": asked["name"],
        "reward_model": {"ground_truth": asked["truth"]},
        "meta_data": {"scorer": asked["scorer"], "task": asked["task"]},
    }
