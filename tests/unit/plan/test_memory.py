"""How the memory of a rank follows from the layout."""

from __future__ import annotations

from typing import Any

from megatron_ext.plan.memory import memory_per_rank
from megatron_ext.plan.stage_plan import RankMemory
from tests.support.plans import make_plan


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


def test_only_activations_of_the_local_backend_are_calibrated() -> None:
    backends = ("local", "te", "auto")
    assert [memory_of(layout={"backend": name})[0].is_calibrated for name in backends] == [True, False, False]
