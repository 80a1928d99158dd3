r"""What replies are worth: verifiable rewards, scored beside the sampling by processes that may be ended.

| part                | is 1 where |
|---------------------|------------|
| accuracy            | the answer in the last box behind the thinking is right, as the prompt's scorer has it |
| format              | the reply is `<think>…</think>` and then one box (`data_tools.scoring.is_well_formed`) |
| accuracy-and-format | both are: CrossThink's reward (arXiv 2504.13941) |

A reward is the sum of its parts times their weights. All parts are kept, whatever they weigh.

Every reply is scored in one of `num_workers` processes without torch (`data_tools/scoring_server.py`). One that takes
longer than its limit, or more memory, is ended and replaced, and its answer is wrong: how often that was is in
`RewardParts.outcome`. What a reply is worth hangs on nothing else, so the number of workers does not show.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from data_tools.errors import DataError, RecipeError, SetupError, TrainingError
from data_tools.scoring_process import ScoringProcess

PARTS = ("accuracy", "format", "accuracy-and-format")

Outcome = Literal["scored", "timed-out", "crashed", "failed"]
"""How scoring ended: by itself; at its limit of time; by the end of its process, for want of memory say; by an error of
the scorer, where `on_error` is `count`. The answer is wrong in all cases but the first."""


_SHOWN = 500
"""Characters of the end of a reply in a message; the answer stands there."""


class ScorerError(TrainingError):
    """A scorer raised, on a prompt that the message names."""


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """How the parts of a reward are put together.

    Attributes:
        weights: Of each of `PARTS`; those not named weigh 0.
        on_error: A scorer that raises makes its future raise, or its answer wrong and counted.

    Raises:
        RecipeError: A weight or name that makes no sense.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy-and-format": 1.0})
    on_error: Literal["raise", "count"] = "raise"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(PARTS))
        if unknown or not self.weights:
            raise RecipeError(f"rewards: {', '.join(unknown) or 'none'}: must be some of {', '.join(PARTS)}.")
        wrong = {name: weight for name, weight in self.weights.items() if not 0 <= weight < float("inf")}
        if wrong or not any(self.weights.values()):
            raise RecipeError(f"rewards: {wrong or dict(self.weights)}: weights must be at least 0, and one above it.")


@dataclass(frozen=True)
class RewardParts:
    """What one reply is worth.

    Attributes:
        total: The reward.
        parts: Each of `PARTS`, 0 or 1, before its weight.
        outcome: How scoring ended.
        detail: What the scorer raised, where it failed; else "".
    """

    total: float
    parts: dict[str, float]
    outcome: Outcome = "scored"
    detail: str = ""


def compose(*, accuracy: float, is_well_formed: float, options: RewardOptions) -> tuple[float, dict[str, float]]:
    """A reward and its parts.

    >>> compose(accuracy=1, is_well_formed=0, options=RewardOptions(weights={"accuracy": 1, "format": 0.5}))
    (1.0, {'accuracy': 1.0, 'format': 0.0, 'accuracy-and-format': 0.0})
    """
    values = (float(accuracy), float(is_well_formed), float(accuracy * is_well_formed))
    parts = dict(zip(PARTS, values, strict=True))
    return float(sum(weight * parts[name] for name, weight in options.weights.items())), parts


def question_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a prompt says about its right answer: truth, scorer and task.

    Raises:
        DataError: One of them is missing.
    """
    reward_model, about = row.get("reward_model"), row.get("meta_data")
    truth = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    scorer = about.get("scorer") if isinstance(about, Mapping) else None
    if not isinstance(truth, str) or not truth.strip():
        raise DataError(f"reward_model.ground_truth: {truth!r} is no answer")
    if not isinstance(scorer, str):
        raise DataError(f"meta_data.scorer: {scorer!r} names no scorer")
    return {"truth": truth, "scorer": scorer, "task": about.get("task") if isinstance(about, Mapping) else None}


def prompt_name(row: Mapping[str, Any]) -> str:
    """The id of a prompt, or how its last turn begins."""
    if row.get("id") is not None:
        return str(row["id"])
    turns = row.get("prompt") or [{}]
    return repr(str(turns[-1].get("content", ""))[:60])


class RewardPool:
    """Scores replies in processes, while the caller goes on.

    Args:
        options: How a reward is composed.
        num_workers: Processes.
        time_limit_s: Wall seconds that one answer may take.

    Raises:
        SetupError: A process cannot be started.
    """

    def __init__(self, options: RewardOptions, *, num_workers: int, time_limit_s: float) -> None:
        assert num_workers >= 1, "somebody must score"
        self._options, self._limit_s = options, time_limit_s
        self._idle: queue.SimpleQueue[ScoringProcess] = queue.SimpleQueue()
        for _ in range(num_workers):
            self._idle.put(ScoringProcess())
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="rewards")

    def submit(self, row: Mapping[str, Any], text: str) -> Future[RewardParts]:
        """Scores a reply, some time.

        Args:
            row: The prompt, in the schema of Nemotron-CrossThink, with its `meta_data.scorer`.
            text: The reply, as decoded.

        Returns:
            Its result; or it raises a ScorerError with the prompt's name and scorer, where the scorer raised and
            `on_error` is `raise`; or a SetupError where a library is missing.

        Raises:
            DataError: The prompt has no answer or scorer.
        """
        return self._threads.submit(self._score, prompt_name(row), question_of(row) | {"text": text})

    def close(self) -> None:
        """Ends the processes, behind what is being scored; what waits is cancelled."""
        self._threads.shutdown(cancel_futures=True)
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _score(self, name: str, question: dict[str, Any]) -> RewardParts:
        worker = self._idle.get()
        try:
            if not worker.is_alive():  # by its last answer, or ended from outside since
                worker.end()
                worker = ScoringProcess()
            try:
                answer = worker.ask(question, limit_s=self._limit_s)
            except SetupError:  # ended from outside, for the machine's memory say; twice is no accident
                worker.end()
                worker = ScoringProcess()
                answer = worker.ask(question, limit_s=self._limit_s)
        finally:
            self._idle.put(worker)
        if "missing" in answer:
            raise SetupError(answer["missing"])
        if "error" in answer and self._options.on_error == "raise":
            raise ScorerError(
                f"prompt {name}: the scorer {question['scorer']} raised {answer['error']}, of the reply "
                f"{question['text'][-_SHOWN:]!r}\n"
                "  Remove the prompt, or count such answers as wrong: rl.rewards.on_error: count."
            )
        total, parts = compose(
            accuracy=answer.get("accuracy", 0), is_well_formed=answer.get("format", 0), options=self._options
        )
        outcome = answer.get("outcome", "failed" if "error" in answer else "scored")
        return RewardParts(total, parts, outcome, answer.get("error", ""))
