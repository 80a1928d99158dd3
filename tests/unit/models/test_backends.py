"""Which backend a model gets, and what is said when it cannot be the one that was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from data_tools.errors import SetupError
from megatron_ext.models.backends import choose_backend
from megatron_ext.models.config import transformer_config
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.device import has_gpu
from megatron_ext.runtime.extensions import missing_for_te
from tests.support.plans import make_plan

pytestmark = pytest.mark.skipif(has_gpu(), reason="says what happens without a GPU")


def asked(backend: str, **layout: Any) -> StagePlan:
    return make_plan(layout={"backend": backend, **layout})


def test_what_te_lacks_is_named() -> None:
    assert missing_for_te()[0] == "a GPU"
    assert "transformer-engine" in missing_for_te()


def test_auto_takes_local_and_says_why() -> None:
    backend = choose_backend(asked("auto"))
    assert backend.name == "local"
    assert backend.reason.startswith("te cannot run here: it needs a GPU, transformer-engine")


def test_local_is_taken_as_asked() -> None:
    assert (choose_backend(asked("local")).name, choose_backend(asked("local")).reason) == ("local", "as asked")


def test_te_that_cannot_run_is_refused_with_the_remedy() -> None:
    with pytest.raises(SetupError, match="training.backend: te needs a GPU and transformer-engine") as caught:
        choose_backend(asked("te"))
    assert "requirements/gpu.md" in str(caught.value)
    assert "training.backend=local" in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "why"), [("local", "training.backend is local"), ("auto", "te cannot run here: it needs a GPU")]
)
def test_a_sequence_split_over_ranks_needs_te(backend: str, why: str) -> None:
    with pytest.raises(SetupError, match=f"context_parallel_size: 2: only te splits a sequence over ranks, and {why}"):
        choose_backend(asked(backend, context_parallel_size=2))


def test_te_is_not_run_on_whole_sequences_as_if_they_were_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_ext.models.backends.missing_for_te", list)  # as where everything is there
    with pytest.raises(SetupError, match="the training step does not hand each rank its part yet"):
        choose_backend(asked("te", context_parallel_size=2))


def test_an_epsilon_that_the_stock_layer_ignores_is_not_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_ext.models.backends.missing_for_te", list)  # as where everything is there
    plan = make_plan(model={"layernorm_epsilon": 1e-6}, layout={"backend": "te"})
    with pytest.raises(SetupError, match="layernorm_epsilon is 1e-06, but core's Mamba-2 layer normalises with 1e-05"):
        choose_backend(plan)
    auto = make_plan(model={"layernorm_epsilon": 1e-6}, layout={"backend": "auto"})
    assert choose_backend(auto).name == "local"
    assert choose_backend(make_plan(layout={"backend": "auto"})).name == "te"


def test_te_takes_upstreams_fusions_and_keeps_the_models_numbers() -> None:
    plan = make_plan(precision="bf16")
    local, te = transformer_config(plan), transformer_config(plan, "te")
    assert (te.transformer_impl, te.bias_dropout_fusion, te.apply_rope_fusion) == ("transformer_engine", True, False)
    x = torch.tensor([-1.0, 3.0])
    assert local.activation_func(x).tolist() == [0.0, 9.0]
    same = {name for name in vars(local) if repr(vars(local)[name]) == repr(vars(te)[name])}
    differing = {name for name in vars(local) if not name.startswith("_")} - same
    assert differing - {"init_method", "output_layer_init_method", "embedding_init_method"} == {
        "transformer_impl",
        "activation_func",
        "bias_dropout_fusion",
    }
