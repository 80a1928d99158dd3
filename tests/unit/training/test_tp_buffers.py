"""What Transformer Engine's buffers are asked for, and that they go when the stage is over."""

from __future__ import annotations

import enum
import sys
from types import ModuleType
from typing import Any

import pytest

from data_tools.errors import SetupError
from megatron_ext.models.config import transformer_config
from megatron_ext.plan.placement import placed
from megatron_ext.recipe.fp8_schema import Fp8Recipe
from megatron_ext.training.tp_buffers import tp_buffers
from tests.support.plans import make_plan

LAYOUT = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "tp_comm_overlap": True}


class Mode(enum.Enum):
    NONE = "none"
    FP8 = "fp8"


def _engine(monkeypatch: pytest.MonkeyPatch, calls: list[Any], *, error: str = "") -> None:
    """A `transformer_engine.pytorch.module` that notes what it is asked."""

    def initialize_ub(**arguments: Any) -> None:
        if error:
            raise RuntimeError(error)
        calls.append(arguments)

    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType("transformer_engine.pytorch.module")
    vars(module).update(
        UserBufferQuantizationMode=Mode, initialize_ub=initialize_ub, destroy_ub=lambda: calls.append("destroyed")
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(
    ("fp8", "modes"),
    [
        (None, [Mode.NONE]),
        (Fp8Recipe(recipe="tensorwise"), [Mode.FP8]),
        (Fp8Recipe(recipe="tensorwise", bf16_edge_layers=1), [Mode.FP8, Mode.NONE]),
    ],
)
def test_the_buffers_have_the_shape_of_a_microbatch(
    monkeypatch: pytest.MonkeyPatch, fp8: Fp8Recipe | None, modes: list[Mode]
) -> None:
    calls: list[Any] = []
    _engine(monkeypatch, calls)
    with tp_buffers(make_plan(layout=LAYOUT, fp8=fp8)):
        assert calls == [
            {
                "shape": [2 * 32, 32],  # micro_batch_size x sequence_length, hidden_size
                "tp_size": 2,
                "quantization_modes": modes,
                "ub_cfgs": {},
                "bootstrap_backend": "nccl",
            }
        ]
    assert calls[1:] == ["destroyed"]


def test_nothing_is_asked_where_nothing_is_wanted() -> None:
    with tp_buffers(make_plan()):
        assert "transformer_engine.pytorch.module" not in sys.modules


def test_a_machine_without_them_is_refused_in_the_engines_words(monkeypatch: pytest.MonkeyPatch) -> None:
    _engine(monkeypatch, [], error="CUDA device does not support comm+GEMM overlap")
    with pytest.raises(SetupError, match="tp_comm_overlap: CUDA device does not support comm\\+GEMM overlap"):
        tp_buffers(make_plan(layout=LAYOUT)).__enter__()


def test_an_engine_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _engine(monkeypatch, [])
    monkeypatch.delattr(sys.modules["transformer_engine.pytorch.module"], "UserBufferQuantizationMode")
    with pytest.raises(SetupError, match=r"tp_comm_overlap: needs transformer-engine 2.8 or later \(cannot import"):
        tp_buffers(make_plan(layout=LAYOUT)).__enter__()


def test_who_reads_a_checkpoint_asks_for_none() -> None:
    assert placed(make_plan(layout=LAYOUT)).layout.tp_comm_overlap is False


def test_layers_are_told_and_without_it_are_not() -> None:
    assert transformer_config(make_plan(layout=LAYOUT), "te").tp_comm_overlap is True
    assert transformer_config(make_plan(layout=LAYOUT | {"tp_comm_overlap": False}), "te").tp_comm_overlap is False


def test_core_graphs_whole_layers_where_the_plan_wants_it() -> None:
    plan = make_plan()
    graphed = plan.model_copy(update={"execution": plan.execution.model_copy(update={"cuda_graphs": True})})
    config = transformer_config(graphed, "te")
    assert (config.cuda_graph_impl, config.cuda_graph_modules) == ("local", [])
    assert transformer_config(plan, "te").cuda_graph_impl == "none"
