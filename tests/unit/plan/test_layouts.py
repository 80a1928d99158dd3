"""A layout is legal or refused with the legal ones, and the pipeline is cut where it is balanced best."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.plan.cuts import cut_by_parameters, place_cuts
from megatron_ext.plan.layouts import legal_tensor_parallel_sizes
from megatron_ext.plan.make import draft_plan
from megatron_ext.plan.stage_plan import LayoutPlan
from megatron_ext.recipe.layer_pattern import LayerPattern
from megatron_ext.recipe.load import load_file
from megatron_ext.recipe.schema import ModelRecipe
from tests.support.pencil_project import PencilProject, refused
from tests.support.sft_project import make_sft_project

REPOSITORY = Path(__file__).parents[3]
TP = "parallel.tensor_model_parallel_size"
PP = "parallel.pipeline_model_parallel_size"


def layout(project: PencilProject, *overrides: str, world_size: int | None = None) -> LayoutPlan:
    return draft_plan(project.load(*overrides), world_size=world_size).layout


def refusal(project: PencilProject, *overrides: str, world_size: int | None = None) -> str:
    return refused(lambda: layout(project, *overrides, world_size=world_size))


def test_without_a_world_size_the_layout_takes_the_fewest_ranks(project: PencilProject) -> None:
    plan = layout(project, f"{TP}=2", f"{PP}=3")
    assert (plan.world_size, plan.data_parallel_size) == (6, 1)


def test_ranks_that_model_parallelism_leaves_are_data_parallel(project: PencilProject) -> None:
    plan = layout(project, f"{TP}=2", world_size=8)
    assert (plan.world_size, plan.data_parallel_size) == (8, 4)


def test_legal_tensor_sizes_divide_every_split_width(project: PencilProject) -> None:
    assert legal_tensor_parallel_sizes(project.load().recipe.model) == [1, 2]


def test_widths_of_layers_that_are_not_there_do_not_count(project: PencilProject) -> None:
    model = project.load("model.hybrid_layer_pattern='*-'", "model.num_query_groups=4").recipe.model
    assert legal_tensor_parallel_sizes(model) == [1, 2, 4]


def test_an_illegal_tensor_size_names_what_it_does_not_divide(project: PencilProject) -> None:
    assert refusal(project, f"{TP}=4") == (
        f"--set {TP}=4: {TP}: 4 does not divide num_query_groups 2, mamba_num_groups 2; legal: 1, 2"
    )


def test_more_pipeline_stages_than_layers_are_refused(project: PencilProject) -> None:
    assert refusal(project, f"{PP}=7").endswith(f"{PP}: 7 stages for 6 layers leave one empty; legal: 1 to 6")


def test_given_cuts_are_kept(project: PencilProject) -> None:
    plan = layout(project, "model.hybrid_layer_pattern=M|-M*M-", f"{PP}=2")
    assert plan.hybrid_layer_pattern == "M|-M*M-"


def test_given_cuts_must_fit_the_pipeline(project: PencilProject) -> None:
    assert refusal(project, "model.hybrid_layer_pattern=M|-M*M-", f"{PP}=3").endswith(
        f"{PP}: 3, but model.hybrid_layer_pattern 'M|-M*M-' is cut into 2 stages; "
        "set it to 2, or remove each | to have the cuts placed"
    )


def test_given_cuts_without_a_pipeline_are_refused(project: PencilProject) -> None:
    assert f"{PP}: 1, but" in refusal(project, "model.hybrid_layer_pattern=M|-M*M-")


def test_sequence_parallel_needs_a_length_that_divides(project: PencilProject) -> None:
    overrides = (f"{TP}=2", "parallel.sequence_parallel=true", "training.sequence_length=15")
    assert "training.sequence_length: 15 is no multiple of tensor_model_parallel_size 2" in refusal(project, *overrides)
    assert "nearest legal: 14, 16" in refusal(project, *overrides)


def test_a_world_that_does_not_divide_lists_those_that_do(project: PencilProject) -> None:
    assert refusal(project, f"{TP}=2", world_size=3) == (
        "world size 3: no multiple of tensor_model_parallel_size 2 x pipeline_model_parallel_size 1 = 2; "
        "start 2, 4 or 8 processes, or change the layout"
    )


def test_a_microbatch_that_does_not_divide_the_batch_lists_those_that_do(project: PencilProject) -> None:
    assert refusal(project, "training.micro_batch_size=3").endswith(
        "training.micro_batch_size: 3 x data_parallel_size 1 = 3 does not divide global_batch_size 4; "
        "legal micro_batch_size: 1, 2, 4"
    )


def test_more_ranks_than_samples_of_a_step_are_refused(project: PencilProject) -> None:
    assert refusal(project, world_size=3).endswith(
        "no micro_batch_size is legal: set global_batch_size to 3 or 6, or start 1, 2 or 4 processes"
    )


def test_one_process_is_no_plural(project: PencilProject) -> None:
    one = ("training.global_batch_size=1", "training.micro_batch_size=1")
    assert "set global_batch_size to 2, or start 1 process" in refusal(project, *one, world_size=2).splitlines()[-1]
    assert "1 processes" not in refusal(project, *one, world_size=2)


def test_several_impossible_things_are_said_together(project: PencilProject) -> None:
    text = refusal(project, f"{TP}=3", f"{PP}=9", "training.micro_batch_size=3")
    assert text.startswith("3 problems\n")


def test_the_vocabulary_weighs_on_the_first_and_last_stage() -> None:
    pattern = LayerPattern("MMMM")
    assert str(place_cuts(pattern, 2, [1, 1, 1, 1], first=0, last=0)) == "MM|MM"
    assert str(place_cuts(pattern, 2, [1, 1, 1, 1], first=3, last=0)) == "M|MMM"
    assert str(place_cuts(pattern, 2, [1, 1, 1, 1], first=0, last=3)) == "MMM|M"


def test_stages_that_are_not_the_heaviest_are_balanced_too() -> None:
    assert str(place_cuts(LayerPattern("MMMMM"), 3, [9, 1, 1, 1, 1], first=0, last=0)) == "M|MM|MM"


def test_of_equal_placements_the_earliest_is_taken() -> None:
    assert str(place_cuts(LayerPattern("MMM"), 2, [1, 1, 1], first=0, last=0)) == "M|MM"


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=8).flatmap(
        lambda weights: st.tuples(st.just(weights), st.integers(1, len(weights)))
    ),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_no_other_placement_has_a_lighter_heaviest_stage(case: tuple[list[int], int], first: int, last: int) -> None:
    weights, num_stages = case
    loads = weights.copy()
    loads[0] += first
    loads[-1] += last

    def heaviest(cuts: tuple[int, ...]) -> int:
        return max(sum(loads[start:end]) for start, end in itertools.pairwise((0, *cuts, len(loads))))

    placed = place_cuts(LayerPattern("M" * len(weights)), num_stages, weights, first=first, last=last)
    every = itertools.combinations(range(1, len(weights)), num_stages - 1)
    assert heaviest(placed.cuts) == min(map(heaviest, every))


def test_an_impossible_layout_is_not_answered_with_a_number_of_processes(project: PencilProject) -> None:
    message = refusal(project, "parallel.tensor_model_parallel_size=3", world_size=2)
    assert "legal: 1, 2" in message
    assert "processes" not in message


CP = "parallel.context_parallel_size"


def test_context_parallel_ranks_multiply_the_world(project: PencilProject) -> None:
    length = "training.sequence_length=32"
    plan = layout(project, f"{TP}=2", f"{CP}=2", length, world_size=8)
    assert (plan.context_parallel_size, plan.data_parallel_size) == (2, 2)
    assert "x context_parallel_size 2 = 4; start 4, 8 or 16 processes" in refusal(
        project, f"{TP}=2", f"{CP}=2", length, world_size=6
    )


def test_the_local_backend_refuses_context_parallelism(project: PencilProject) -> None:
    assert refusal(project, f"{CP}=2", "training.backend=local").endswith(
        f"{CP}: 2, but training.backend local needs whole sequences on a rank; "
        "set that to te, or this to 1 and raise tensor_model_parallel_size"
    )


@pytest.mark.parametrize("isolation", ["attention", "full"])
def test_documents_are_not_kept_apart_on_shared_sequences(project: PencilProject, isolation: str) -> None:
    assert refusal(project, f"{CP}=2", f"data.document_isolation={isolation}").endswith(
        f"{CP}: 2, but data.document_isolation {isolation} keeps documents of any length apart, and ranks share only "
        "such as are multiples of 4; set this to 1 and raise tensor_model_parallel_size"
    )


def test_ranks_share_conversations_that_are_padded_to_their_pieces(tmp_path: Path) -> None:
    project = make_sft_project(tmp_path)
    assert layout(project, f"{CP}=2", "sft.pad_multiple=4", "training.sequence_length=32").context_parallel_size == 2
    assert refusal(project, f"{CP}=2", "sft.pad_multiple=2").endswith(
        "sft.pad_multiple: 2 is no multiple of 4 = 2 x context_parallel_size 2, into which each conversation is cut; "
        "set it to 4, in every layout of this stage: it decides about rows, and so about the stage's id"
    )


def test_context_parallelism_splits_mamba_heads_after_tensor_parallelism(project: PencilProject) -> None:
    length = "training.sequence_length=192"
    assert refusal(project, f"{CP}=3", length).endswith(
        "3 does not divide mamba_num_heads 8 / tensor_model_parallel_size 1; legal: 1, 2, 4, 8"
    )
    assert refusal(project, f"{TP}=2", f"{CP}=8", length).endswith(
        "8 does not divide mamba_num_heads 8 / tensor_model_parallel_size 2; legal: 1, 2, 4"
    )


def test_context_parallelism_splits_or_repeats_whole_mamba_groups(project: PencilProject) -> None:
    overrides = ("model.mamba_num_heads=12", "model.mamba_num_groups=4", "training.sequence_length=192")
    assert refusal(project, f"{CP}=6", *overrides).endswith(
        "6 neither divides nor is a multiple of mamba_num_groups 4 / tensor_model_parallel_size 1; legal: 1, 2, 4, 12"
    )


def test_attention_alone_lets_any_context_size_pass(project: PencilProject) -> None:
    overrides = ("model.hybrid_layer_pattern='*-'", "training.sequence_length=100")
    assert layout(project, f"{CP}=5", *overrides).context_parallel_size == 5


@pytest.mark.parametrize(
    ("overrides", "unit", "words"),
    [
        ((f"{CP}=4",), 8, "8 = context_parallel_size 4 x 2"),
        ((f"{CP}=2", f"{TP}=2"), 4, "4 = context_parallel_size 2 x 2"),
        (
            (f"{CP}=4", f"{TP}=2", "parallel.sequence_parallel=true"),
            8,
            "8 = context_parallel_size 4 x lcm(2, tensor_model_parallel_size 2)",
        ),
    ],
)
def test_a_shared_sequence_divides_into_early_and_late_pieces(
    project: PencilProject, overrides: tuple[str, ...], unit: int, words: str
) -> None:
    assert layout(project, *overrides, f"training.sequence_length={9 * unit}").world_size > 1
    text = refusal(project, *overrides, f"training.sequence_length={9 * unit - 2}")
    assert text.endswith(f"{9 * unit - 2} is no multiple of {words}; nearest legal: {8 * unit}, {9 * unit}")


def test_a_shared_row_too_short_for_the_proof_of_its_layers_is_refused(project: PencilProject) -> None:
    assert refusal(project, f"{CP}=4", "training.sequence_length=56").endswith(
        "training.sequence_length: 56, and what context_parallel_size 4 does to a row is proved before training on one "
        "of at least 64 = 16 x 4 tokens; lengthen the rows"
    )
    assert layout(project, f"{CP}=4", "training.sequence_length=64").context_parallel_size == 4
    assert refusal(project, f"{CP}=3", "training.sequence_length=96").endswith("; legal: 1, 2, 4")  # 8 needs 128


def test_the_8b_is_cut_into_16_stages_at_once() -> None:
    model = load_file(REPOSITORY / "recipes/models/nemotron_h_8b.yaml")
    assert isinstance(model, ModelRecipe)
    assert [len(stage) for stage in cut_by_parameters(model, 2).segments] == [26, 26]
    assert min(map(len, cut_by_parameters(model, 16).segments)) >= 1


def test_the_8b_allows_eight_tensor_ranks() -> None:
    model = load_file(REPOSITORY / "recipes/models/nemotron_h_8b.yaml")
    assert isinstance(model, ModelRecipe)
    assert legal_tensor_parallel_sizes(model) == [1, 2, 4, 8]


def test_an_option_is_blamed_for_what_it_breaks_and_no_line_of_a_file(project: PencilProject) -> None:
    project.edit("pretrain.yaml", "precision: fp32", "parallel: {pipeline_model_parallel_size: 2}\nprecision: fp32")
    option = "model.hybrid_layer_pattern=M"
    assert refusal(project, option) == f"--set {option}: {PP}: 2 stages for 1 layers leave one empty; legal: 1 to 1"
    project.edit("model.yaml", "ffn_hidden_size: 128", "ffn_hidden_size: 0")
    project.edit("model.yaml", "M-M*M-", "M*M*M*")
    option = "model.hybrid_layer_pattern=M-"
    assert refusal(project, option).startswith(f"--set {option}: model.ffn_hidden_size: 0, but the pattern has MLP")
