"""In bf16 every parameter trains from an fp32 master, `A_log`, `D` and `dt_bias` too: small updates are not lost."""

from __future__ import annotations

import torch

from megatron_ext.models.build import build_model
from megatron_ext.training.optimizer import clip_and_step, make_optimizer, set_learning_rate
from megatron_ext.training.parts import wrap_model
from tests.support.one_process import one_process
from tests.support.plans import make_plan

RATE = 4e-4
"""Adam's first updates move a number by about the rate: a bf16 number near 1 has steps of 2**-8 to 2**-7."""


def test_updates_that_bf16_cannot_hold_add_up() -> None:
    with one_process() as groups:
        plan = make_plan(precision="bf16", optimizer={"weight_decay": 0.0})
        model = wrap_model(plan, build_model(plan, groups), groups)
        optimizer = make_optimizer(plan, model, groups)
        names = [name for name, _ in model.named_parameters() if name.split(".")[-1] in ("A_log", "D", "dt_bias")]
        parameters = dict(model.named_parameters())
        assert len(names) == 6  # of two Mamba-2 layers
        assert {parameters[name].dtype for name in names} == {torch.bfloat16}
        masters = optimizer.chained_optimizers[0].get_parameters()
        assert {master.dtype for group in optimizer.param_groups for master in group["params"]} == {torch.float32}
        assert len(masters) == len(parameters)
        before = {name: parameters[name].detach().float().clone() for name in names}
        for step in range(150):
            model.zero_grad_buffer()
            for parameter in model.parameters():
                parameter.main_grad.fill_(1.0)
            set_learning_rate(optimizer, RATE)
            optimizer.prepare_grads()
            clip_and_step(optimizer, float(optimizer.get_grad_norm()))
            if step == 0:
                is_still = [torch.equal(parameters[name].float(), before[name]) for name in names if name[-1] == "D"]
                assert is_still == [True, True]  # D begins at 1
        for name in names:
            torch.testing.assert_close(parameters[name].float(), before[name] - 150 * RATE, rtol=2**-8, atol=0)
            assert not torch.equal(parameters[name].float(), before[name]), name
