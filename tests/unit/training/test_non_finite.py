"""NaN and Inf stop a step before the weights move, and say what, where, and which samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_tools.errors import TrainingError
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.step import train_step
from tests.support.sources import plan_reading, write_source


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    write_source(tmp_path / "toy", [[1, 2, 3, 4, 5, 6, 7, 0]] * 9)
    plan = plan_reading({"toy": (tmp_path / "toy", 16)}, global_batch_size=4, micro_batch_size=2)
    with process_groups(Launch(rank=0, local_rank=0, world_size=1)) as groups:
        yield make_parts(plan, groups)


def parameter_of(parts: Parts, name: str) -> torch.nn.Parameter:
    return dict(parts.model.module.named_parameters())[name]


def test_a_nan_weight_stops_the_step_and_is_named(parts: Parts) -> None:
    with torch.no_grad():
        parameter_of(parts, "decoder.layers.0.mixer.dt_bias")[0] = float("nan")
    with pytest.raises(TrainingError) as caught:
        train_step(parts, lr=0.1, step=7)
    message = str(caught.value)
    assert message.startswith("step 7: loss is nan; the weights are those of step 6")
    assert "decoder.layers.0.mixer.dt_bias value" in message
    assert message.count("toy:0:") == 4, "the four samples of the global batch"
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
