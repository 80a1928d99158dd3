"""RMSNorm, plain and gated."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_ext.models.config import transformer_config
from megatron_ext.models.norm import GatedRMSNorm, RMSNorm
from tests.support.plans import make_plan

CONFIG = transformer_config(make_plan())


def gated_norm(groups: ProcessGroupCollection, width: int, group_size: int) -> GatedRMSNorm:
    return GatedRMSNorm(CONFIG, width, group_size=group_size, pg_collection=groups)


def plain_torch(x: Tensor, z: Tensor, weight: Tensor, group_size: int) -> Tensor:
    h = (x * F.silu(z)).unflatten(-1, (-1, group_size))
    return F.rms_norm(h, (group_size,), eps=CONFIG.layernorm_epsilon).flatten(-2) * weight


def test_divides_by_the_root_of_the_mean_square() -> None:
    norm = RMSNorm(CONFIG, 2, eps=0.0)
    torch.testing.assert_close(norm(torch.tensor([1.0, 7.0])), torch.tensor([0.2, 1.4]))  # root of (1 + 49) / 2 is 5


def test_multiplies_by_the_weight() -> None:
    norm = RMSNorm(CONFIG, 2, eps=0.0)
    norm.weight.data = torch.tensor([10.0, 100.0])
    torch.testing.assert_close(norm(torch.tensor([1.0, 7.0])), torch.tensor([2.0, 140.0]))


def test_epsilon_is_added_to_the_mean_square() -> None:
    norm = RMSNorm(CONFIG, 2, eps=11.0)
    torch.testing.assert_close(norm(torch.tensor([6.0, 12.0])), torch.tensor([6.0, 12.0]) / 101**0.5)


def test_gradients_equal_torchs() -> None:
    norm = RMSNorm(CONFIG, 6).double()
    norm.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    x = torch.randn(4, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.arange(48, dtype=torch.float64).view(4, 2, 6)
    ours = torch.autograd.grad((norm(x) * weights).sum(), [x, norm.weight])
    theirs = torch.autograd.grad((F.rms_norm(x, (6,), norm.weight, norm.eps) * weights).sum(), [x, norm.weight])
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_the_weight_says_whether_ranks_hold_different_tokens(sequence_parallel: bool) -> None:
    plan = make_plan(layout={"tensor_model_parallel_size": 2, "sequence_parallel": sequence_parallel})
    assert RMSNorm(transformer_config(plan), 4).weight.sequence_parallel is sequence_parallel


def test_bfloat16_is_normalised_in_float32() -> None:
    norm = RMSNorm(CONFIG, 256).bfloat16()
    x = torch.full((256,), 3.0, dtype=torch.bfloat16)
    x[0] = 200.0  # squares of 3 vanish beside its square in bfloat16
    expected = F.rms_norm(x.float(), (256,), eps=norm.eps).bfloat16()
    assert torch.equal(norm(x), expected)


def test_the_gate_comes_before_the_norm_and_the_norm_is_by_group(groups: ProcessGroupCollection) -> None:
    norm = gated_norm(groups, 4, 2)
    gate = torch.full((4,), 30.0)  # silu(30) = 30, which the norm removes again
    y = norm(torch.tensor([1.0, 7.0, 10.0, 70.0]), gate)
    torch.testing.assert_close(y, torch.tensor([0.2, 1.4, 0.2, 1.4]))


def test_gated_values_and_gradients_equal_plain_torch(groups: ProcessGroupCollection) -> None:
    norm = gated_norm(groups, 6, 3).double()
    norm.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(4, 2, 6, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    weights = torch.randn(4, 2, 6, dtype=torch.float64, generator=generator)
    ours, theirs = norm(x, z), plain_torch(x, z, norm.weight, 3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    inputs = [x, z, norm.weight]
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        rtol=0,
        atol=1e-11,
    )
