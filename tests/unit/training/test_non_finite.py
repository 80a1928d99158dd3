"""NaN and Inf stop a step before the weights move, and say what, where, and which samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_tools.errors import TrainingError
from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.training.checkpoint import load_checkpoint
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.saving import CheckpointWrite
from megatron_ext.training.state import TrainState
from megatron_ext.training.step import train_step
from tests.support.sources import plan_reading, write_source, write_tokenizer
from tests.support.toy_project import ToyProject


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    write_source(tmp_path / "toy", [[1, 2, 3, 4, 5, 6, 7, 0]] * 9)
    plan = plan_reading({"toy": (tmp_path / "toy", 16)}, global_batch_size=4, micro_batch_size=2)
    with process_groups(Launch(rank=0, local_rank=0, world_size=1)) as groups:
        yield make_parts(plan, groups)


def parameter_of(parts: Parts, name: str) -> torch.nn.Parameter:
    names = {key.removeprefix("module."): parameter for key, parameter in parts.model.module.named_parameters()}
    return names[name]


def test_a_nan_weight_stops_the_step_and_is_named(parts: Parts) -> None:
    with torch.no_grad():
        parameter_of(parts, "decoder.layers.0.mixer.dt_bias")[0] = float("nan")
    with pytest.raises(TrainingError) as caught:
        train_step(parts, lr=0.1, step=7)
    message = str(caught.value)
    assert message.startswith("step 7: loss is nan; the weights are those of step 6")
    assert "decoder.layers.0.mixer.dt_bias value" in message
    listed, documents = message.split("  documents\n")
    assert listed.count("toy:0:") == documents.count("toy:0:") == 4, "the four samples of the global batch"
    assert caught.value.exit_code == 5


def test_an_infinite_gradient_stops_the_step_and_keeps_the_weights(parts: Parts) -> None:
    out = parameter_of(parts, "output_layer.weight")
    out.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: p.detach().clone() for name, p in parts.model.module.named_parameters()}
    with pytest.raises(TrainingError, match="gradient norm is (inf|nan)") as caught:
        train_step(parts, lr=0.1, step=1)
    assert "output_layer.weight gradient" in str(caught.value)
    for name, parameter in parts.model.module.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name} moved"


def test_a_skipped_step_keeps_weights_and_optimizer_and_counts_its_data(parts: Parts) -> None:
    first = train_step(parts, lr=0.1, step=1)
    adam = parts.optimizer.chained_optimizers[0].optimizer
    handle = parameter_of(parts, "output_layer.weight").register_hook(lambda gradient: gradient * float("inf"))
    before = [p.detach().clone() for p in parts.model.parameters()]
    states = [{name: value.clone() for name, value in state.items()} for state in adam.state.values()]
    second = train_step(parts, lr=0.1, step=2, may_skip=True)
    handle.remove()
    assert all(map(torch.equal, before, parts.model.parameters()))
    assert all(
        torch.equal(value, state[name])
        for kept, state in zip(states, adam.state.values(), strict=True)
        for name, value in kept.items()
    )
    assert str(second.skipped).startswith("step 2: gradient norm is ")
    assert "output_layer.weight gradient" in str(second.skipped)
    state = TrainState().advance(first).advance(second)
    assert (state.step, state.consumed_samples, state.trained_tokens, state.skipped_steps) == (2, 8, 16, 1)
    assert parts.cursor.consumed_samples == 8, "the data is behind us"
    third = train_step(parts, lr=0.1, step=3)
    assert third.skipped is None
    assert any(not torch.equal(*pair) for pair in zip(before, parts.model.parameters(), strict=True))


def test_the_samples_of_the_microbatches_that_failed_are_listed_first(tmp_path: Path) -> None:
    write_source(tmp_path / "toy", [[1, 2, 3, 4, 5, 6, 7, 0]] * 8 + [[9, 2, 3, 0]])
    plan = plan_reading({"toy": (tmp_path / "toy", 16)}, global_batch_size=16, micro_batch_size=2)
    with process_groups(Launch(rank=0, local_rank=0, world_size=1)) as groups:
        parts = make_parts(plan, groups)
        with torch.no_grad():
            parameter_of(parts, "embedding.word_embeddings.weight")[9] = float("nan")
        microbatches = BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1).next_step()
        (failing,) = (batch for batch in microbatches if bool((batch.tokens == 9).any()))
        with pytest.raises(TrainingError) as caught:
            train_step(parts, lr=0.1, step=1)
    _, listed = str(caught.value).split("  documents  (first the 2 samples of microbatches whose loss is not finite)\n")
    first = sorted(failing.sample_ids)
    assert [line.strip().split(": ")[0] for line in listed.splitlines()[:2]] == first
    everything = sorted(sample for batch in microbatches for sample in batch.sample_ids)
    assert everything[:2] != first, "by their names alone they would not come first"
    assert f"samples read    {' '.join([*first, *(name for name in everything if name not in first)])}  (" in str(
        caught.value
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("distributed_optimizer", [False, True])
def test_a_checkpoint_before_the_first_update_is_resumed(
    tmp_path: Path, distributed_optimizer: bool, precision: str
) -> None:
    write_source(tmp_path / "toy", [[1, 2, 3, 4, 5, 6, 7, 0]] * 9)
    plan = plan_reading(
        {"toy": (tmp_path / "toy", 16)},
        global_batch_size=4,
        micro_batch_size=2,
        tokenizer=write_tokenizer(tmp_path / "tokenizer"),
        layout={"use_distributed_optimizer": distributed_optimizer},
        precision=precision,
    )
    with process_groups(Launch(rank=0, local_rank=0, world_size=1)) as groups:
        parts = make_parts(plan, groups)
        handle = parameter_of(parts, "output_layer.weight").register_hook(lambda gradient: gradient * float("inf"))
        state = TrainState().advance(train_step(parts, lr=0.1, step=1, may_skip=True))
        handle.remove()
        path = CheckpointWrite(tmp_path, parts, state).finish()
        resumed = make_parts(plan, groups)
        assert load_checkpoint(path, resumed) == state
        assert state.skipped_steps == 1
        for step in (2, 3):
            assert train_step(resumed, lr=0.1, step=step).loss == train_step(parts, lr=0.1, step=step).loss


@pytest.mark.slow
def test_a_run_skips_as_often_as_it_may_says_so_and_stops(toy_project: ToyProject, tmp_path: Path) -> None:
    # The first update of this size makes every later loss NaN.
    overrides = ("optimizer.lr=1e30", "optimizer.min_lr=1e30", "schedule={style: constant, warmup_tokens: 0}")
    run = toy_project.run(tmp_path, *overrides, "training.max_skipped_steps=2")
    assert run.code == 5
    assert run.output.count("WARNING: step ") == 2
    assert "WARNING: step 2: loss is nan; the weights are those of step 1." in run.output
    assert "The update was skipped: 2 of training.max_skipped_steps 2." in run.output
    assert "error: step 4: loss is nan" in run.output
    assert [line["skipped_steps"] for line in run.metrics] == [0, 1, 2]
    assert [line["trained_tokens"] for line in run.metrics] == [512, 512, 512]
    assert [line["consumed_tokens"] for line in run.metrics] == [512, 1024, 1536]
    assert [line["loss"] is None for line in run.metrics] == [False, True, True]
    text = (run.stage_folder / "metrics.jsonl").read_text()
    assert "NaN" not in text, "no JSON"
