"""The RL objective on rows whose every number stands in the file, and whatever rows responses lie in."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.datasets.rollout_batch import RolloutBatch
from megatron_ext.objectives.rl import RlOptions
from megatron_ext.objectives.rl_objective import MAXIMA, SUMS, RlObjective
from tests.support.rollouts import Responses, make_responses, pack, packed_values

LN2 = math.log(2)
LENGTHS = (3, 11, 1, 8, 5, 2)


def row(source_index: list[int], **columns: list[float] | None) -> RolloutBatch:
    values = {name: None if column is None else torch.tensor([column]) for name, column in columns.items()}
    ids = torch.zeros(1, len(source_index), dtype=torch.int64)
    return RolloutBatch(
        tokens=ids, labels=ids, position_ids=ids, source_index=torch.tensor([source_index]), sample_ids=("row:0",),
        cu_seqlens=(0, len(source_index)), **values,  # type: ignore[arg-type]
    )  # fmt: skip


def named(report: Tensor) -> dict[str, list[float]]:
    columns = ("loss", "weight", *SUMS, *MAXIMA, "trained_tokens")
    return {name: [round(float(value), 6) for value in column] for name, column in zip(columns, report.T, strict=True)}


def test_a_row_is_summed_by_source() -> None:
    batch = row(
        [0, 0, 0, 1],
        loss_mask=[1, 1, 0, 0.5], divisor=[2, 0, 0, 1], advantages=[1, 1, 9, -2],
        old_log_probs=[0, -LN2, 9, -2 * LN2], sampled_log_probs=[-LN2, -LN2, 9, 0],
        reference_log_probs=[0, -LN2, 9, LN2],
    )  # fmt: skip
    log_probs = torch.tensor([[0.0, 0.0, 7.0, 0.0]])
    options = RlOptions(max_new_tokens=4, clip_high=0.5, kl="k2", kl_coefficient=2.0, importance_cap=1.0)
    entropy = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    # ratios 1, 2, 4; importance weights 2 cut to 1, 1, 1/4; KL 0, LN2^2 / 2, LN2^2 / 2
    loss, divisor, report = RlObjective(3, options=options, tp_group=None).sum_rollouts(log_probs, entropy, batch)
    kl = LN2**2 / 2
    assert divisor.item() == 3
    assert divisor.dtype == torch.int32
    assert loss.item() == pytest.approx(-1 - (1.5 - 2 * kl) + 0.5 * (4 * 2 / 4 + 2 * kl))
    assert named(report) == {
        "loss": [pytest.approx(-2.5 + 2 * kl, abs=1e-6), pytest.approx(1 + kl, abs=1e-6), 0],
        "weight": [2, 1, 0],
        "entropy": [3, 8, 0],
        "kl_reference": [pytest.approx(kl, abs=1e-6), pytest.approx(kl, abs=1e-6), 0],
        "clip_low_fraction": [0, 0, 0],
        "clip_high_fraction": [1, 0, 0],
        "ratio_mean": [3, 4, 0],
        "mismatch_mean": [pytest.approx(LN2, abs=1e-6), pytest.approx(2 * LN2, abs=1e-6), 0],
        "mismatch_kl": [pytest.approx(1 - LN2, abs=1e-6), pytest.approx(2 * LN2 - 0.75, abs=1e-6), 0],
        "importance_truncated_fraction": [1, 0, 0],
        "ratio_max": [2, 4, 0],
        "mismatch_max": [pytest.approx(LN2, abs=1e-6), pytest.approx(2 * LN2, abs=1e-6), 0],
        "trained_tokens": [2, 1, 0],
    }


def test_metrics_are_means_over_trained_tokens_and_maxima() -> None:
    objective = RlObjective(2, options=RlOptions(max_new_tokens=4), tp_group=None)
    report = torch.tensor([[5.0, 4, *range(1, 9), 3, 0.5, 3], [7.0, 4, *[0] * 8, 2, 0.75, 1]], dtype=torch.float64)
    found = objective.metrics(report)
    assert [found[name] for name in SUMS] == [number / 4 for number in range(1, 9)]
    assert {name: found[name] for name in MAXIMA} == {"ratio_max": 3.0, "mismatch_max": 0.75}


def test_without_old_log_probs_the_gradient_is_that_of_reinforce() -> None:
    batch = row(
        [0, 0], loss_mask=[1, 1], divisor=[2, 0], advantages=[3, -1], old_log_probs=None,
        sampled_log_probs=[-2, -2], reference_log_probs=None,
    )  # fmt: skip
    log_probs = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    options = RlOptions(max_new_tokens=4, kl_coefficient=0.0)
    loss, _, report = RlObjective(1, options=options, tp_group=None).sum_rollouts(log_probs, log_probs.detach(), batch)
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[-3.0, 1.0]]
    assert named(report)["ratio_mean"] == [2.0]
    assert named(report)["mismatch_mean"] == [2.0]


def in_rows(rows: list[tuple[int, ...]], aggregation: Any) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient and metrics of the six responses, in rows of their own length."""
    options = RlOptions(max_new_tokens=12, aggregation=aggregation, kl_coefficient=0.1, overlong="mask")
    responses: Responses = make_responses(LENGTHS, cut_off=(3,))
    policy = responses.policy.clone().requires_grad_()
    objective = RlObjective(1, options=options, tp_group=None)
    reports, divisor = [], 0
    loss = torch.zeros(())
    for numbers in rows:
        length = sum(LENGTHS[number] + 2 for number in numbers) + len(numbers)  # and some padding
        batch = pack(responses, numbers, row_length=length, options=options)
        values = (packed_values(responses, one, numbers, row_length=length) for one in (policy, responses.entropy))
        summed, weight, report = objective.sum_rollouts(*values, batch)
        loss, divisor = loss + summed, divisor + int(weight)
        reports.append(report)
    loss.backward()
    total = torch.stack(reports).sum(0)
    columns = list(objective.max_columns)
    total[:, columns] = torch.stack(reports)[..., columns].amax(0)
    assert policy.grad is not None
    assert float(total[0, 1]) == divisor
    return loss.item() / divisor, policy.grad / divisor, objective.metrics(total)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "group-sum"])
def test_nothing_hangs_on_the_rows_that_responses_lie_in(aggregation: Any) -> None:
    together = in_rows([(0, 1, 2, 3, 4, 5)], aggregation)
    for rows in ([(0,), (1,), (2,), (3,), (4,), (5,)], [(5, 0), (3,), (1, 4, 2)]):
        loss, gradient, metrics = in_rows(rows, aggregation)
        assert loss == pytest.approx(together[0], rel=1e-6)
        torch.testing.assert_close(gradient, together[1], rtol=0, atol=1e-7)
        assert metrics == pytest.approx(together[2], rel=1e-9)


def test_aggregations_weigh_tokens_of_long_and_short_responses_as_they_say() -> None:
    for aggregation, share in (("token", 1 / 22), ("sequence", 1 / 5 / 11), ("group-sum", 1 / 5 / 12)):
        options = RlOptions(max_new_tokens=12, aggregation=aggregation, kl_coefficient=0.0, overlong="mask")  # type: ignore[arg-type]
        responses = make_responses(LENGTHS, cut_off=(3,))
        rows = [pack(responses, (number,), row_length=16, options=options) for number in range(6)]
        divisor = sum(float(batch.divisor.sum()) for batch in rows)
        assert float(rows[1].loss_mask.max()) / divisor == pytest.approx(share)
        assert rows[3].loss_mask.eq(0).all()


def test_a_batch_moves_with_all_that_it_holds() -> None:
    options = RlOptions(max_new_tokens=12)
    batch = pack(make_responses(LENGTHS), (0, 2), row_length=16, options=options)
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, RolloutBatch)
    tensors = [name for name, value in vars(batch).items() if torch.is_tensor(value)]
    assert len(tensors) == 10
    assert all(getattr(moved, name).is_meta for name in tensors)
    assert replace(batch, reference_log_probs=None).to(torch.device("meta")).reference_log_probs is None


def test_columns_of_maxima_are_those_that_are_named_so() -> None:
    places = itertools.count(2 + len(SUMS))
    assert RlObjective.max_columns == tuple(itertools.islice(places, len(MAXIMA)))
