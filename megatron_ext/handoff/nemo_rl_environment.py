"""Our rewards as an environment of NeMo-RL; imported there only, where ray, torch and nemo_rl are.

Source of the interface: NeMo-RL 0.7.0, `nemo_rl/environments/interfaces.py`.
"""

from __future__ import annotations

from typing import Any

import ray
import torch
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn

from megatron_ext.handoff.scoring import make_pool, score


@ray.remote(max_restarts=-1, max_task_retries=-1)
class RewardEnvironment(EnvironmentInterface[dict[str, Any]]):
    """One turn: a prompt, a reply, its reward.

    Args:
        rewards: `env.megatron_ext` of the configuration: the recipe's `rl.rewards`.
    """

    def __init__(self, rewards: dict[str, Any]) -> None:
        self._pool = make_pool(rewards)

    def shutdown(self) -> None:
        """Ends the processes that score."""
        self._pool.close()

    def step(
        self, message_log_batch: list[list[dict[str, Any]]], metadata: list[dict[str, Any]]
    ) -> EnvironmentReturn[dict[str, Any]]:
        """Scores the replies of a batch.

        Args:
            message_log_batch: Turns of each conversation; the assistant's are the reply.
            metadata: Of each, `ground_truth` from `encode_question`.
        """
        replies = [
            "".join(str(turn["content"]) for turn in turns if turn["role"] == "assistant")
            for turns in message_log_batch
        ]
        found = score(self._pool, replies, [about["ground_truth"] for about in metadata])
        rewards = torch.tensor([one.total for one in found], dtype=torch.float32)
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": ""} for _ in found],
            metadata=metadata,
            next_stop_strings=[None] * len(found),
            rewards=rewards,
            terminateds=torch.ones_like(rewards),
            answers=None,
        )

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """The mean reward, under the name by which NeMo-RL validates.

        Args:
            batch: All replies of a step.
        """
        rewards = batch["rewards"]
        return batch, {"accuracy": float(rewards.mean()), "num_problems_in_batch": float(len(rewards))}
