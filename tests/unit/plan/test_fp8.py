"""fp8 is part of what a stage is, and is refused while planning where it could not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.strict_yaml import load_yaml
from megatron_ext.plan.fp8 import ALIGNMENT, product_widths
from megatron_ext.plan.layouts import legal_tensor_parallel_sizes
from megatron_ext.plan.make import draft_plan
from megatron_ext.recipe.schema import ModelRecipe
from tests.support.pencil_project import PencilProject, refused

FP8 = "fp8={recipe: tensorwise}"
FITS = ("precision=bf16", "model.mamba_num_heads=16", "model.mamba_head_dim=8")
MODELS = Path(__file__).parents[3] / "recipes" / "models"


def refusal(project: PencilProject, *overrides: str) -> str:
    return refused(lambda: draft_plan(project.load(*overrides)))


def test_a_stage_without_fp8_keeps_its_id_and_one_with_it_is_another(project: PencilProject) -> None:
    without, off = project.plan(*FITS), project.plan(*FITS, "fp8=null")
    options = ("", ", format: e4m3", ", bf16_edge_layers: 1")
    on, *others = (project.plan(*FITS, f"fp8={{recipe: tensorwise{more}}}") for more in options)
    blocks = project.plan(*FITS, "fp8={recipe: blockwise}")
    assert "fp8" not in without.meaning
    assert off.stage_id == without.stage_id
    assert len({plan.stage_id for plan in (without, on, blocks, *others)}) == 5
    assert on.meaning["fp8"] == {"recipe": "tensorwise", "format": "hybrid", "bf16_edge_layers": 0}


def test_fp8_beside_fp32_is_refused(project: PencilProject) -> None:
    assert "fp8: set, but precision is fp32" in refusal(project, FP8, *FITS[1:])


def test_fp8_of_the_local_backend_is_refused(project: PencilProject) -> None:
    text = refusal(project, FP8, *FITS, "training.backend=local")
    assert "fp8: set, but training.backend local multiplies in bf16 only; set that to te" in text


def test_widths_that_are_no_multiples_of_16_are_refused_with_their_keys(project: PencilProject) -> None:
    text = refusal(project, FP8, "precision=bf16")  # 2 x 128 + 2 x 32 + 8
    width = "2 x mamba_num_heads x mamba_head_dim + 2 x mamba_num_groups x mamba_state_dim + mamba_num_heads"
    assert f"fp8 multiplies multiples of 16 only, and on a rank {width} = 328; change these" in text


def test_tensor_parallelism_makes_widths_smaller(project: PencilProject) -> None:
    text = refusal(project, FP8, *FITS, "parallel.tensor_model_parallel_size=2")  # 336 / 2
    assert "on a rank (with tensor_model_parallel_size 2) 2 x mamba_num_heads" in text
    assert "= 168; change these" in text


@pytest.mark.parametrize(
    ("override", "width"),
    [
        ("model.hidden_size=72", "hidden_size = 72"),
        ("model.ffn_hidden_size=136", "ffn_hidden_size = 136"),
        ("model.kv_channels=2", "num_attention_heads x kv_channels = 8"),
        ("model.num_query_groups=1", "(num_attention_heads + 2 x num_query_groups) x kv_channels = 24"),
    ],
)
def test_the_widths_of_every_kind_of_layer_count(project: PencilProject, override: str, width: str) -> None:
    text = refusal(project, FP8, *FITS, "model.kv_channels=4", override)
    assert f"on a rank {width}; change these" in text


@pytest.mark.parametrize(
    ("overrides", "tokens"),
    [
        (("training.sequence_length=40", "training.validation_tokens=40", "budget.tokens=640"), 40),
        (("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"), 8),
        (("parallel.context_parallel_size=2",), 8),
    ],
    ids=["one", "sequence parallel", "context parallel"],
)
def test_the_tokens_of_a_rank_count_too(project: PencilProject, overrides: tuple[str, ...], tokens: int) -> None:
    assert f"training.sequence_length of a rank = {tokens}; change" in refusal(project, FP8, *FITS, *overrides)


def test_bf16_layers_at_the_ends_leave_one_in_fp8(project: PencilProject) -> None:
    edges = "fp8={recipe: tensorwise, bf16_edge_layers: %d}"
    assert draft_plan(project.load(*FITS, edges % 2)).layout.world_size == 1
    assert "3, but of 6 layers in 1 pipeline stage(s) at most 2 at either end" in refusal(project, *FITS, edges % 3)
    stages = "parallel.pipeline_model_parallel_size=6"
    assert "2, but of 6 layers in 6 pipeline stage(s) at most 1 at" in refusal(project, *FITS, stages, edges % 2)


def test_delayed_scaling_is_not_offered(project: PencilProject) -> None:
    assert "use one of: blockwise, tensorwise" in refused(lambda: project.load(*FITS, "fp8={recipe: delayed}"))


@pytest.mark.parametrize(("name", "sizes"), [("nemotron_h_8b", [1, 2, 4, 8]), ("hybrid_1b", [1, 2, 4])])
def test_the_large_models_fit_in_these_layouts(name: str, sizes: list[int]) -> None:
    model = ModelRecipe(**load_yaml(MODELS / f"{name}.yaml").data)
    fitting = [
        tensor
        for tensor in legal_tensor_parallel_sizes(model)
        if all(width % ALIGNMENT == 0 for width in product_widths(model, tensor_model_parallel_size=tensor).values())
    ]
    assert fitting == sizes
