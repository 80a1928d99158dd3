"""Options of te that hold every pass to one shape are refused where passes have several."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.plan.make import draft_plan
from tests.support.pencil_project import PencilProject, refused
from tests.support.sft_project import make_sft_project

OVERLAP = (
    "parallel.tp_comm_overlap=true",
    "parallel.tensor_model_parallel_size=2",
    "parallel.sequence_parallel=true",
)
GRAPHS = ("training.cuda_graphs=true",)
FITS = ("precision=bf16", "model.mamba_num_heads=32", "model.mamba_head_dim=8", "training.sequence_length=32")


def refusal(project: PencilProject, *overrides: str) -> str:
    return refused(lambda: draft_plan(project.load(*overrides)))


def test_what_is_asked_for_is_planned_and_no_part_of_the_id(project: PencilProject) -> None:
    plain = project.plan()
    overlapped, graphed = project.plan(*OVERLAP), project.plan(*GRAPHS)
    assert overlapped.layout.tp_comm_overlap
    assert graphed.execution.cuda_graphs
    assert {overlapped.stage_id, graphed.stage_id} == {plain.stage_id}


@pytest.mark.parametrize(("option", "key"), [(OVERLAP, "parallel.tp_comm_overlap"), (GRAPHS, "training.cuda_graphs")])
@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.backend=local", "training.backend local has none of it (te has)"),
        ("data.document_isolation=full", "data.document_isolation full tells layers where documents begin"),
        ("parallel.context_parallel_size=2", "parallel.context_parallel_size 2 is proved on other rows first"),
    ],
)
def test_rows_of_several_shapes_are_refused(
    project: PencilProject, option: tuple[str, ...], key: str, override: str, reason: str
) -> None:
    text = refusal(project, *option, *FITS, override)
    assert f"{key}: true, but {reason}; set this to false, or change these" in text


@pytest.mark.parametrize("key", ["parallel.tp_comm_overlap", "training.cuda_graphs"])
def test_rows_of_conversations_are_refused(tmp_path: Path, key: str) -> None:
    loaded = make_sft_project(tmp_path).load(f"{key}=true")
    assert f"{key}: true, but stage sft reads packed rows" in refused(lambda: draft_plan(loaded))


def test_overlap_needs_what_it_overlaps(project: PencilProject) -> None:
    assert "parallel.sequence_parallel is false, and nothing is gathered" in refusal(project, *OVERLAP[:2])
    assert "fp8.recipe blockwise does not go through" in refusal(project, *OVERLAP, *FITS, "fp8={recipe: blockwise}")
    assert draft_plan(project.load(*OVERLAP, *FITS, "fp8={recipe: tensorwise}")).layout.tp_comm_overlap


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("parallel.pipeline_model_parallel_size=2", "needs a graph for each microbatch"),
        ("training.recompute=full", "training.recompute full runs layers again"),
        ("parallel.tp_comm_overlap=true", "parallel.tp_comm_overlap sends on streams of its own"),
    ],
)
def test_graphs_are_refused_beside_what_they_cannot_hold(project: PencilProject, override: str, reason: str) -> None:
    assert reason in refusal(project, *GRAPHS, override)


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        (("parallel.overlap_grad_reduce=true",), "use_distributed_optimizer"),
        (("parallel.use_distributed_optimizer=true",), "overlap_grad_reduce"),
        ((), "use_distributed_optimizer and overlap_grad_reduce"),
    ],
)
def test_weights_are_gathered_meanwhile_only_with_what_core_does_it_with(
    project: PencilProject, overrides: tuple[str, ...], needed: str
) -> None:
    text = refusal(project, "parallel.overlap_param_gather=true", *overrides)
    assert f"parallel.overlap_param_gather: true, but {needed} false" in text
