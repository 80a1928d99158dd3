"""Settings that core refuses, or that would change nothing, are refused before anything starts."""

from __future__ import annotations

import pytest

from megatron_ext.plan.make import draft_plan
from tests.support.pencil_project import PencilProject, refused

SELECTIVE = "training.recompute=selective"
FULL = "training.recompute=full"


def refusal(project: PencilProject, *overrides: str) -> str:
    return refused(lambda: draft_plan(project.load(*overrides)))


def test_the_plan_records_what_is_computed_again(project: PencilProject) -> None:
    execution = draft_plan(project.load(SELECTIVE, "training.recompute_modules=[core_attn, mlp]")).execution
    assert (execution.recompute, execution.recompute_modules) == ("selective", ("core_attn", "mlp"))


@pytest.mark.parametrize("mode", ["none", "full"])
def test_modules_are_read_with_selective_only(project: PencilProject, mode: str) -> None:
    text = refusal(project, f"training.recompute={mode}", "training.recompute_modules=[mlp]")
    assert text.endswith(
        f"training.recompute_modules: [mlp] is read with recompute selective only, and recompute is {mode}; "
        "remove it (or set it to [core_attn] where a file above sets it)"
    )


@pytest.mark.parametrize(
    ("pattern", "module", "legal"),
    [
        ("M-M-", "core_attn", "legal: mlp"),
        ("M*M*", "mlp", "legal: core_attn"),
        ("MMMM", "core_attn", "nothing here can be: set recompute to none or full"),
    ],
)
def test_a_module_needs_layers_that_have_it(project: PencilProject, pattern: str, module: str, legal: str) -> None:
    overrides = (f"model.hybrid_layer_pattern={pattern}", SELECTIVE, f"training.recompute_modules=[{module}]")
    text = refusal(project, *overrides)
    assert text.endswith(f"[{module}]: nothing of {module} would be computed again in pattern {pattern!r}; {legal}")


def test_selective_of_nothing_is_refused(project: PencilProject) -> None:
    assert "an empty list computes nothing again" in refusal(project, SELECTIVE, "training.recompute_modules=[]")


def test_layers_of_a_group_are_read_with_full_only(project: PencilProject) -> None:
    assert refusal(project, "training.recompute_num_layers=2").endswith(
        "2 is read with recompute full only, and recompute is none; "
        "remove it (or set it to 1 where a file above sets it)"
    )


def test_a_group_has_at_most_the_layers_of_a_stage(project: PencilProject) -> None:
    pipeline = "parallel.pipeline_model_parallel_size=2"  # M-M|*M-
    assert draft_plan(project.load(FULL, pipeline, "training.recompute_num_layers=3")).layout.world_size == 2
    assert refusal(project, FULL, pipeline, "training.recompute_num_layers=4").endswith(
        "training.recompute_num_layers: 4, but no pipeline stage has more than 3 layers; legal: 1 to 3"
    )


def test_a_group_that_leaves_a_shorter_one_is_legal(project: PencilProject) -> None:
    assert draft_plan(project.load(FULL, "training.recompute_num_layers=4")).execution.recompute_num_layers == 4


def test_an_optimizer_format_needs_the_distributed_optimizer(project: PencilProject) -> None:
    asked = "checkpoint.optimizer_format=dp_reshardable"
    assert "read with parallel.use_distributed_optimizer only" in refusal(project, asked)
    draft = draft_plan(project.load(asked, "parallel.use_distributed_optimizer=true"))
    assert draft.execution.optimizer_format == "dp_reshardable"


def test_profiled_steps_lie_within_the_run(project: PencilProject) -> None:
    assert draft_plan(project.load("profile.steps=9-10")).execution.profile_steps == (9, 10)
    assert refusal(project, "profile.steps=9-11").endswith("9-11: the run has 10 steps; name some of these")
    assert "the run has 3 steps" in refusal(project, "profile.steps=2-4", "training.max_steps=3")
