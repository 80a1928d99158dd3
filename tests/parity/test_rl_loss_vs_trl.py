"""The RL loss of packed rows is TRL's GRPO loss of the same responses, padded: value, gradient, and what is logged.

TRL's own `_compute_loss` runs, on a trainer that has nothing but its options; the log-probabilities that a model
would give it are the leaves of both graphs. fp32: loss and gradient within 1e-6, sums of a few tens of terms of size
one, in another order. Entropies and log-probabilities of 64 logits likewise.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from megatron_ext.objectives.rl import RlOptions, length_penalty
from megatron_ext.objectives.rl_objective import RlObjective
from megatron_ext.objectives.token_log_probs import log_probs_and_entropy
from tests.support.one_process import one_process
from tests.support.rollouts import Responses, make_responses, pack, packed_values

pytestmark = pytest.mark.slow  # trl's imports take ten seconds

LENGTHS = (3, 11, 1, 8, 5, 2)
ROWS, ROW_LENGTH = ((0, 1, 2), (3, 4, 5)), 24
MAX_NEW_TOKENS = 12
LOSS_TYPES = {"token": "dapo", "sequence": "grpo", "group-sum": "dr_grpo"}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kl_coefficient": 0.0},
    "kl": {"kl_coefficient": 0.1},
    "kl-weighted": {"kl_coefficient": 0.1, "kl_weighted": True},
    "clip-higher": {"kl_coefficient": 0.0, "clip_high": 0.28},
    "importance": {"kl_coefficient": 0.1, "importance_cap": 1.5},
    "all": {"kl_coefficient": 0.1, "kl_weighted": True, "clip_high": 0.28, "importance_cap": 1.2},
}


def ours(responses: Responses, options: RlOptions) -> tuple[float, Tensor, dict[str, float]]:
    policy = responses.policy.clone().requires_grad_()
    objective = RlObjective(1, options=options, tp_group=None)
    loss, divisor, report = torch.zeros(()), 0, torch.zeros(1, objective.report_columns, dtype=torch.float64)
    for numbers in ROWS:
        batch = pack(responses, numbers, row_length=ROW_LENGTH, options=options)
        log_probs, entropy = (
            packed_values(responses, values, numbers, row_length=ROW_LENGTH) for values in (policy, responses.entropy)
        )
        summed, weight, of_row = objective.sum_rollouts(log_probs, entropy, batch)
        loss, divisor, report = loss + summed, divisor + int(weight), report + of_row
    (loss / divisor).backward()
    assert policy.grad is not None
    return loss.item() / divisor, policy.grad, objective.metrics(report)


def trl(responses: Responses, options: RlOptions) -> tuple[float, Tensor, dict[str, Any]]:
    policy = responses.policy.clone().requires_grad_()
    mask = responses.mask
    if options.overlong == "mask":
        mask = mask * torch.tensor([[float(n not in responses.cut_off)] for n in range(len(LENGTHS))])
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, responses.entropy, None),
        _metrics=metrics,
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda values: values, reduce=lambda values, reduction: values
        ),
        args=SimpleNamespace(delta=None, steps_per_generation=1, use_bias_correction_kl=options.kl_weighted),
        aux_loss_enabled=False,
        beta=options.kl_coefficient,
        current_gradient_accumulation_steps=1,
        epsilon_high=options.clip_high,
        epsilon_low=options.clip_low,
        importance_sampling_level="token",
        loss_type=LOSS_TYPES[options.aggregation],
        max_completion_length=MAX_NEW_TOKENS,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=options.importance_cap is not None,
        vllm_importance_sampling_correction=True,
    )
    ratio = torch.exp(responses.old - responses.sampled)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": responses.advantages,
        "old_per_token_logps": responses.old,
        "ref_per_token_logps": responses.reference,
        # as `token_truncate` of `_generate_and_score_completions` has it
        "importance_sampling_ratio": ratio.clamp(max=options.importance_cap or torch.inf),
        "num_items_in_batch": mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    assert policy.grad is not None
    return loss.item(), policy.grad, metrics["train"]


@pytest.mark.parametrize("aggregation", LOSS_TYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradient_are_those_of_trl(name: str, aggregation: Any) -> None:
    options = RlOptions(max_new_tokens=MAX_NEW_TOKENS, aggregation=aggregation, **OPTIONS[name])
    responses = make_responses(LENGTHS)
    loss, gradient, _ = ours(responses, options)
    their_loss, their_gradient, _ = trl(responses, options)
    assert abs(loss) > 1e-2
    assert loss == pytest.approx(their_loss, abs=1e-6)
    torch.testing.assert_close(gradient, their_gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("aggregation", "divided_by"), [("token", 1.0), ("sequence", 6 / 4), ("group-sum", 6 / 4)])
def test_masked_responses_are_left_out_of_the_mean_where_trl_counts_them(aggregation: Any, divided_by: float) -> None:
    options = RlOptions(max_new_tokens=MAX_NEW_TOKENS, aggregation=aggregation, overlong="mask", kl_coefficient=0.1)
    responses = make_responses(LENGTHS, cut_off=(1, 4))
    loss, gradient, _ = ours(responses, options)
    their_loss, their_gradient, _ = trl(responses, options)
    assert loss == pytest.approx(divided_by * their_loss, abs=1e-6)
    torch.testing.assert_close(gradient, divided_by * their_gradient, rtol=0, atol=1e-6)
    assert gradient[[1, 4]].eq(0).all()


def test_what_is_logged_is_what_trl_logs() -> None:
    options = RlOptions(max_new_tokens=MAX_NEW_TOKENS, **OPTIONS["kl"])
    responses = make_responses(LENGTHS)
    _, _, found = ours(responses, options)
    _, _, theirs = trl(responses, options)
    names = {
        "entropy": "entropy",
        "kl_reference": "kl",
        "clip_low_fraction": "clip_ratio/low_mean",
        "clip_high_fraction": "clip_ratio/high_mean",
    }
    assert {name: found[name] for name in names} == {
        name: pytest.approx(theirs[of_trl][0], abs=1e-6) for name, of_trl in names.items()
    }
    assert found["clip_low_fraction"] > 0
    assert found["clip_high_fraction"] > 0


def test_the_length_penalty_is_that_of_trl() -> None:
    options = RlOptions(max_new_tokens=100, overlong="soft-penalty", overlong_penalty_tokens=20)
    lengths = (1, 79, 80, 81, 93, 100)
    theirs = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    assert [length_penalty(length, options) for length in lengths] == pytest.approx(
        theirs(completion_ids=[[0] * length for length in lengths])
    )


def test_log_probabilities_and_entropies_are_those_of_trl() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(1, 9, 64, generator=generator)
    labels = torch.randint(0, 64, (1, 9), generator=generator)
    with one_process() as groups:
        log_probs, entropy = log_probs_and_entropy(logits, labels, temperature=0.7, tp_group=groups.tp)
    torch.testing.assert_close(log_probs, selective_log_softmax(logits / 0.7, labels), rtol=0, atol=2e-6)
    torch.testing.assert_close(entropy, entropy_from_logits(logits / 0.7), rtol=0, atol=2e-6)
