"""Weight decay groups, and the traps of torch's AdamW inside Megatron-Core's optimizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.models.build import build_model
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.training.optimizer import (
    clip_and_step,
    describe_adam,
    has_weight_decay,
    make_optimizer,
    set_learning_rate,
)
from megatron_ext.training.optimizer_state import count_updates, fill_states, load_optimizer_state
from megatron_ext.training.parts import wrap_model
from tests.support.plans import make_plan

METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
FORMATS = [("fully_reshardable", False), ("fully_reshardable", True), ("dp_reshardable", True)]


@pytest.fixture(scope="module")
def groups() -> Iterator[ProcessGroupCollection]:
    with process_groups(Launch(rank=0, local_rank=0, world_size=1)) as joined:
        yield joined


def make(groups: ProcessGroupCollection, *, distributed: bool, precision: str = "fp32") -> tuple[Any, Any]:
    plan = make_plan(layout={"use_distributed_optimizer": distributed}, precision=precision)
    model = wrap_model(plan, build_model(plan, groups), groups)
    return model, make_optimizer(plan, model, groups)


def update(model: Any, optimizer: Any, *, value: float) -> None:
    """One update in which every gradient is `value`."""
    model.zero_grad_buffer()
    for parameter in model.parameters():
        parameter.main_grad.fill_(value)
    set_learning_rate(optimizer, 0.01)
    optimizer.prepare_grads()
    clip_and_step(optimizer, float(optimizer.get_grad_norm()))


def adam_of(optimizer: Any) -> torch.optim.AdamW:
    adam = optimizer.chained_optimizers[0].optimizer
    assert isinstance(adam, torch.optim.AdamW)
    return adam


def test_only_matrices_outside_the_convolution_decay(groups: ProcessGroupCollection) -> None:
    model, _ = make(groups, distributed=False)
    decayed, kept = set(), set()
    for name, parameter in model.module.named_parameters():
        kind = re.sub(r"^(decoder\.layers\.\d+\.|decoder\.|embedding\.)", "", name)
        (decayed if has_weight_decay(name, parameter) else kept).add(kind)
    assert decayed == {
        "word_embeddings.weight",
        "mixer.in_proj.weight",
        "mixer.out_proj.weight",
        "mlp.linear_fc1.weight",
        "mlp.linear_fc2.weight",
        "self_attention.linear_qkv.weight",
        "self_attention.linear_proj.weight",
        "output_layer.weight",
    }
    assert kept == {
        "mixer.A_log",
        "mixer.D",
        "mixer.dt_bias",
        "mixer.conv1d_weight",
        "mixer.conv1d_bias",
        "mixer.norm.weight",
        "norm.weight",
        "input_layernorm.weight",
        "pre_mlp_layernorm.weight",
        "final_norm.weight",
    }


def test_the_log_names_whose_adam_it_is(groups: ProcessGroupCollection) -> None:
    assert describe_adam(make(groups, distributed=True)[1]) == "optimizer: AdamW of torch"


@pytest.mark.parametrize(
    ("module", "owner"),
    [
        ("transformer_engine.pytorch.optimizers.fused_adam", "Transformer Engine, fused"),
        ("apex.optimizers.fused_adam", "apex, fused"),
    ],
)
def test_the_log_names_an_extensions_adam_by_the_module_that_it_is_of(module: str, owner: str) -> None:
    adam = type("FusedAdam", (), {"__module__": module})
    optimizer: Any = SimpleNamespace(chained_optimizers=[SimpleNamespace(optimizer=adam())])
    assert describe_adam(optimizer) == f"optimizer: FusedAdam of {owner}"


@pytest.mark.parametrize("distributed", [False, True])
def test_an_undecayed_parameter_with_no_gradient_stays(groups: ProcessGroupCollection, distributed: bool) -> None:
    model, optimizer = make(groups, distributed=distributed)
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    update(model, optimizer, value=0.0)
    for name, parameter in model.module.named_parameters():
        kept = 1.0 - 0.01 * 0.1 if has_weight_decay(name, parameter) else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept, rtol=1e-6, atol=0, msg=name)


def test_a_fresh_distributed_optimizer_describes_its_state_once_filled(groups: ProcessGroupCollection) -> None:
    model, optimizer = make(groups, distributed=True)
    weights = model.module.sharded_state_dict(metadata={"dp_cp_group": groups.dp_cp})
    with pytest.raises(AssertionError):
        optimizer.sharded_state_dict(weights, is_loading=True, metadata=METADATA)
    fill_states(optimizer)
    described = optimizer.sharded_state_dict(weights, is_loading=True, metadata=METADATA)
    assert described["param_state_sharding_type"] == "fully_reshardable"


def test_a_group_without_parameters_counts_no_updates(groups: ProcessGroupCollection) -> None:
    model, optimizer = make(groups, distributed=False)
    update(model, optimizer, value=0.1)
    adam_of(optimizer).param_groups.append({"params": [], "step": 7})
    assert count_updates(optimizer) == 1


@pytest.mark.parametrize(("written_as", "distributed"), FORMATS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_parameter_counts_its_own_steps_after_loading(
    groups: ProcessGroupCollection, written_as: Any, distributed: bool, precision: str, tmp_path: Any
) -> None:
    from megatron.core import dist_checkpointing

    metadata = {"distrib_optim_sharding_type": written_as, "dp_cp_group": groups.dp_cp}
    model, optimizer = make(groups, distributed=distributed, precision=precision)
    for _ in range(3):
        update(model, optimizer, value=0.1)
    weights = model.module.sharded_state_dict(metadata=metadata)
    saved = {"model": weights, "optimizer": optimizer.sharded_state_dict(weights, metadata=metadata)}
    dist_checkpointing.save(saved, str(tmp_path))

    other_model, other = make(groups, distributed=distributed, precision=precision)
    with torch.no_grad():
        fill_states(other)
        weights = other_model.module.sharded_state_dict(metadata=metadata)
        wanted = {"model": weights, "optimizer": other.sharded_state_dict(weights, is_loading=True, metadata=metadata)}
        loaded = dist_checkpointing.load(wanted, str(tmp_path))
        other_model.module.load_state_dict(loaded["model"])
        load_optimizer_state(other, loaded["optimizer"], updates=count_updates(optimizer), written_as=written_as)
    states = list(adam_of(other).state.values())
    assert {float(state["step"]) for state in states} == {3.0}
    assert len({id(state["step"]) for state in states}) == len(states)

    update(model, optimizer, value=0.2)
    update(other_model, other, value=0.2)
    assert {float(state["step"]) for state in states} == {4.0}
    for (name, ours), theirs in zip(model.module.named_parameters(), other_model.module.parameters(), strict=True):
        assert torch.equal(ours, theirs), f"{name} differs after a resumed update"
