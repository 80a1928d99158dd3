"""Results around some tasks, for tests that look at the tasks alone."""

from __future__ import annotations

from pathlib import Path

from megatron_ext.evaluate.results import (
    CheckpointIdentity,
    Contamination,
    EngineFacts,
    Interval,
    Metric,
    Results,
    TaskResult,
    write_results,
)


def results_of(*tasks: TaskResult) -> Results:
    """Results that hold these tasks."""
    return Results(
        name="one",
        created="2026-01-01T00:00:00+00:00",
        command="megatron-ext evaluate …",
        seconds=1.0,
        checkpoint=CheckpointIdentity(
            path="stages/sft-1/checkpoints/step_4",
            stage_id="sft-1",
            stage="sft",
            recipe="sft.yaml",
            step=4,
            is_finished=True,
            fingerprint="f",
            model="toy",
            parameters=1_000,
            tokenizer_fingerprint="t",
            consumed_tokens=100,
            trained_tokens=80,
            sampled_tokens=0,
        ),
        engine=EngineFacts(
            name="megatron_ext",
            backend="local",
            dtype="float32",
            device="cpu",
            world_size=1,
            tensor_model_parallel_size=1,
            versions={},
        ),
        seed=1,
        options={},
        tasks=tasks,
    )


def leave_evaluation(stage: Path, *, fingerprint: str) -> None:
    """Leaves an evaluation of 200 questions in a stage's folder."""
    task = TaskResult(
        task="verifiable:questions.jsonl",
        kind="verifiable",
        name="questions",
        headline="acc",
        metrics=(Metric(name="acc", value=0.25, n=200, interval=Interval(low=0.19, high=0.32, method="wilson")),),
        items=200,
        seed=1,
        contamination=Contamination(status="clean"),
    )
    results = results_of(task)
    checkpoint = results.checkpoint.model_copy(update={"fingerprint": fingerprint, "step": 5})
    folder = stage / "evaluations" / "one"
    folder.mkdir(parents=True)
    write_results(folder, results.model_copy(update={"checkpoint": checkpoint}))
