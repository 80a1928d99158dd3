"""Initial parameters: distributions, names, seeds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from megatron_ext.models.build import build_model
from megatron_ext.models.initialise import draw_full, global_parameters, initialise_parameters, local_part
from megatron_ext.models.limits import UnsupportedError
from megatron_ext.plan.stage_plan import StagePlan
from tests.support.plans import make_plan

WIDE = {"hidden_size": 128, "ffn_hidden_size": 512, "mamba_num_heads": 64, "mamba_head_dim": 4}


def weights(plan: StagePlan, groups: ProcessGroupCollection) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in global_parameters(build_model(plan, groups))}


@pytest.fixture(scope="module")
def wide(groups: ProcessGroupCollection) -> dict[str, Tensor]:
    return weights(make_plan(model=WIDE), groups)


class Rank:
    """A tensor-parallel group, as far as slicing asks."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("embedding.word_embeddings.weight", 0.02),
        ("output_layer.weight", 0.02),
        ("decoder.layers.0.mixer.in_proj.weight", 0.02),
        ("decoder.layers.1.mlp.linear_fc1.weight", 0.02),
        ("decoder.layers.2.self_attention.linear_qkv.weight", 0.02),
        ("decoder.layers.0.mixer.out_proj.weight", 0.01),  # 0.02 / sqrt(4 layers)
        ("decoder.layers.1.mlp.linear_fc2.weight", 0.01),
        ("decoder.layers.2.self_attention.linear_proj.weight", 0.01),
    ],
)
def test_matrices_have_the_standard_deviation_of_their_kind(wide: dict[str, Tensor], name: str, std: float) -> None:
    assert float(wide[name].std()) == pytest.approx(std, rel=0.05)
    assert float(wide[name].mean()) == pytest.approx(0.0, abs=std / 20)


def test_step_sizes_lie_between_a_thousandth_and_a_tenth(wide: dict[str, Tensor]) -> None:
    dt = F.softplus(wide["decoder.layers.0.mixer.dt_bias"].double())
    assert 0.001 * 0.999 <= float(dt.min()) < 0.002
    assert 0.05 < float(dt.max()) <= 0.1 * 1.001
    assert float(dt.log().mean()) == pytest.approx(torch.tensor([0.001, 0.1]).log().mean().item(), abs=0.5)


def test_decay_rates_lie_between_one_and_sixteen(wide: dict[str, Tensor]) -> None:
    A = wide["decoder.layers.0.mixer.A_log"].exp()
    assert 1 <= float(A.min()) < 3
    assert 14 < float(A.max()) <= 16


def test_the_convolution_is_uniform_within_a_half(wide: dict[str, Tensor]) -> None:
    taps = wide["decoder.layers.0.mixer.conv1d_weight"]
    assert 0.49 < float(taps.abs().max()) <= 0.5
    assert float(taps.std()) == pytest.approx(1 / 12**0.5, rel=0.05)


@pytest.mark.parametrize(
    "name", ["decoder.layers.0.norm.weight", "decoder.layers.0.mixer.D", "decoder.final_norm.weight"]
)
def test_norms_and_skip_weights_are_one(wide: dict[str, Tensor], name: str) -> None:
    assert torch.equal(wide[name], torch.ones_like(wide[name]))


def test_the_same_seed_gives_the_same_weights(groups: ProcessGroupCollection) -> None:
    first, second = weights(make_plan(seed=7), groups), weights(make_plan(seed=7), groups)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights(groups: ProcessGroupCollection) -> None:
    first, second = weights(make_plan(seed=7), groups), weights(make_plan(seed=8), groups)
    assert not torch.equal(first["output_layer.weight"], second["output_layer.weight"])


def test_layers_of_one_kind_start_differently(groups: ProcessGroupCollection) -> None:
    drawn = weights(make_plan(), groups)
    names = [f"decoder.layers.{number}.mixer.in_proj.weight" for number in (0, 3)]
    assert not torch.equal(drawn[names[0]], drawn[names[1]])


def test_bfloat16_weights_are_the_float32_ones_rounded(groups: ProcessGroupCollection) -> None:
    exact, rounded = weights(make_plan(), groups), weights(make_plan(precision="bf16"), groups)
    name = "decoder.layers.1.mlp.linear_fc1.weight"
    assert torch.equal(rounded[name], exact[name].bfloat16())


def test_every_parameter_is_filled(groups: ProcessGroupCollection) -> None:
    model: HybridModel = build_model(make_plan(), groups)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialise_parameters(model, 0)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_parameter_that_no_rule_knows_is_refused(groups: ProcessGroupCollection) -> None:
    model = build_model(make_plan(), groups)
    model.decoder.layers[0].mixer.surprise = nn.Parameter(torch.zeros(1))
    with pytest.raises(UnsupportedError, match=r"decoder.layers.0.mixer.surprise: no rule"):
        initialise_parameters(model, 0)


def test_a_packed_matrix_is_sliced_part_by_part() -> None:
    full = torch.tensor([10.0, 11, 12, 13, 20, 21])  # four rows of one part, two of another
    parameter = nn.Parameter(torch.zeros(3))
    parameter.tensor_model_parallel, parameter.partition_dim = True, 0  # type: ignore[attr-defined]
    parameter.partition_sizes = [2, 1]  # type: ignore[attr-defined]
    halves = [local_part(full, parameter, Rank(rank, 2)).tolist() for rank in (0, 1)]  # type: ignore[arg-type]
    assert halves == [[10, 11, 20], [12, 13, 21]]


def test_a_sharded_parameter_is_drawn_in_its_full_size() -> None:
    parameter = nn.Parameter(torch.zeros(6, 5))
    parameter.tensor_model_parallel, parameter.partition_dim = True, 1  # type: ignore[attr-defined]

    class Config:
        @staticmethod
        def output_layer_init_method(full: Tensor, generator: torch.Generator | None) -> None:
            full.normal_(generator=generator)

    full = draw_full("mlp.linear_fc2.weight", parameter, 4, config=Config())  # type: ignore[arg-type]
    assert full.shape == (6, 20)
