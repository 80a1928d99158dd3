"""How the memory of a rank follows from the layout."""

from __future__ import annotations

from typing import Any

from megatron_ext.plan.memory import memory_per_rank
from megatron_ext.plan.stage_plan import RankMemory
from megatron_ext.recipe.fp8_schema import Fp8Recipe
from tests.support.plans import make_plan

LAYOUTS: tuple[dict[str, Any], ...] = ({}, {"tensor_model_parallel_size": 2})


def memory_of(precision: str = "bf16", **changes: Any) -> tuple[RankMemory, ...]:
    plan = make_plan(**changes)
    return memory_per_rank(plan.model, plan.layout, plan.batch, plan.execution, precision=precision)


def test_an_early_pipeline_stage_keeps_as_many_microbatches_as_stages_follow() -> None:
    alike = {"hybrid_layer_pattern": "--|--|--"}
    layout = {"pipeline_model_parallel_size": 3}
    first, second, last = memory_of(model=alike, layout=layout, batch={"global_batch_size": 16})
    assert first.activations == 3 * last.activations
    assert second.activations == 2 * last.activations
    assert first.logits == second.logits == 0 < last.logits


def test_no_stage_keeps_more_microbatches_than_a_step_has() -> None:
    layout = {"pipeline_model_parallel_size": 3}
    batch = {"global_batch_size": 2, "micro_batch_size": 1}
    first, second, last = memory_of(model={"hybrid_layer_pattern": "--|--|--"}, layout=layout, batch=batch)
    assert first.activations == second.activations == 2 * last.activations


def test_tensor_parallelism_divides_the_layers_and_sequence_parallelism_the_stream_between_them() -> None:
    # 64 tokens of 64 bytes: a norm keeps its input, 4 bytes of mean square and its output; fc1 and fc2 128 bytes each.
    model, tp2 = {"hybrid_layer_pattern": "-"}, {"tensor_model_parallel_size": 2}
    stream, inner = 64 * (64 + 4 + 64), 64 * 2 * 128
    kept = [memory_of(model=model, layout=layout)[0].activations for layout in ({}, tp2)]
    assert kept == [stream + inner, stream + inner // 2]
    (memory,) = memory_of(model=model, layout=tp2 | {"sequence_parallel": True})
    assert memory.activations == (stream + inner) // 2


STREAM = 64 * (64 + 4 + 64)
"""What a norm keeps of 64 tokens of 32 channels in bf16."""


def test_two_ranks_halve_attention_and_a_rank_of_one_group_copies_no_queries() -> None:
    # 64 tokens, 4 heads and 2 groups of 8 channels of 2 bytes; 4 bytes of log-sum-exp a head.
    kept = [memory_of(model={"hybrid_layer_pattern": "*"}, layout=layout)[0].activations for layout in LAYOUTS]
    whole = 64 * (2 * 8 * (4 + 2 + 2 + 4 + 4) + 4 * 4)  # queries, keys, values; their copy; the output
    half = 64 * (2 * 8 * (2 + 1 + 1 + 2) + 4 * 2)
    assert kept == [STREAM + whole, STREAM + half]


def test_two_ranks_halve_all_of_a_mamba_layer_but_its_stream() -> None:
    # 4 heads of 16 channels are 64, 2 groups of 8 states; the convolution has 96 channels; 2 chunks of 32 tokens.
    whole = {
        "te": 64 * 2 * ((64 + 96 + 4) + 3 * 64),  # in_proj's output, the scan's, both ends of the gated norm
        "local": 64 * (2 * (64 + 96 + 4) + 4 * 96 + 4 * 64)  # in_proj's output, before the SiLU, x in fp32
        + 64 * 4 * (2 * 2 * 8 + 3 * 4 + 64)  # B and C, dt twice and its sums, y
        + 64 * (2 * 2 * 64 + 4 * 2)  # both ends of the gated norm, its mean squares
        + 4 * 2 * (32 * 32 * (4 + 2) + 64 * 8)  # decays and C B^T, a chunk's state
        + 4 * 2 * 64 * 8,  # the first state of each of 2 samples
    }
    for backend, bytes_kept in whole.items():
        one, two = (
            memory_of(model={"hybrid_layer_pattern": "M"}, layout=layout | {"backend": backend})[0].activations
            for layout in LAYOUTS
        )
        assert (one, two) == (STREAM + bytes_kept, STREAM + bytes_kept // 2), backend


def test_only_activations_of_the_local_backend_are_calibrated() -> None:
    backends = ("local", "te", "auto")
    assert [memory_of(layout={"backend": name})[0].is_calibrated for name in backends] == [True, False, False]


def test_weights_of_products_in_fp8_are_kept_twice_in_a_byte_each_but_for_those_at_the_ends() -> None:
    # fc1 and fc2 of 32 x 64 weights each: 4,096 of a layer, of which the embedding, norms and output layer are none.
    layouts = {"{}": {}, "tp": {"tensor_model_parallel_size": 2}, "pp": {"pipeline_model_parallel_size": 2}}
    kept = {}
    for name, layout in layouts.items():
        plan = make_plan(model={"hybrid_layer_pattern": "--|--" if name == "pp" else "----"}, layout=layout)
        kept[name] = [
            tuple(
                memory.fp8_weights
                for memory in memory_per_rank(
                    plan.model, plan.layout, plan.batch, plan.execution, precision="bf16", fp8=fp8
                )
            )
            for fp8 in (None, Fp8Recipe(recipe="tensorwise"), Fp8Recipe(recipe="blockwise", bf16_edge_layers=1))
        ]
    assert kept == {
        "{}": [(0,), (4 * 8_192,), (2 * 8_192,)],
        "tp": [(0,), (2 * 8_192,), (8_192,)],
        "pp": [(0, 0), (2 * 8_192, 2 * 8_192), (8_192, 8_192)],
    }
