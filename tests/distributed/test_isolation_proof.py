"""The proof of isolation before training: it holds in every layout, and a model that leaks is refused.

Leaks are made as they come about: something on the way to a layer loses or falsifies what the row is described by.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from data_tools.errors import SetupError
from megatron_ext.models.build import build_model
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.runtime.seed import seed_everything
from megatron_ext.training.isolation import IsolationReport, measure_isolation, require_isolation
from megatron_ext.training.parts import wrap_model
from tests.support.distributed import run_distributed
from tests.support.plans import make_plan

TP2 = {"tensor_model_parallel_size": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "dp2": {"data_parallel_size": 2},
    "tp2": TP2,
    "tp2-sequence-parallel": TP2 | {"sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
}
Falsify = Callable[[Any], None]


def one_document(packed: Any) -> None:
    packed.seq_idx = torch.zeros_like(packed.seq_idx)


def no_index(packed: Any) -> None:
    packed.seq_idx = None


def one_token_late(packed: Any) -> None:
    packed.seq_idx = packed.seq_idx.roll(1, dims=1)
    packed.seq_idx[:, 0] = 0


def one_too_many(packed: Any) -> None:
    packed.seq_idx = packed.seq_idx + (torch.arange(packed.total_tokens, device=packed.seq_idx.device) >= 3).int()


def no_bounds(packed: Any) -> None:
    packed.cu_seqlens_q = packed.cu_seqlens_kv = packed.cu_seqlens_q[[0, -1]]


LEAKS: dict[str, Falsify] = {
    "one document": one_document,
    "no index": no_index,
    "one token late": one_token_late,
    "no bounds": no_bounds,
}


def measured(layout: dict[str, Any], precision: str, falsify: Falsify | None) -> IsolationReport:
    sizes = {key: size for key, size in layout.items() if key.endswith("model_parallel_size")}
    plan = make_plan(layout=layout, precision=precision, batch={"sequence_length": 96})
    with process_groups(Launch.from_environment(), **sizes) as groups:
        seed_everything(plan.seed)
        model = wrap_model(plan, build_model(plan, groups), groups)
        if falsify is not None:
            model.register_forward_pre_hook(partial(_hand_on, falsify), with_kwargs=True)
        return measure_isolation(model, plan, groups)


def _hand_on(falsify: Falsify, _: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    kwargs = {name: copy(value) for name, value in kwargs.items()}
    if "packed_seq_params" in kwargs:
        falsify(kwargs["packed_seq_params"])
    return args, kwargs


def run(name: str, precision: str = "fp32", falsify: Falsify | None = None) -> IsolationReport:
    layout = LAYOUTS[name]
    ranks = make_plan(layout=layout).layout.world_size
    first, *others = run_distributed(measured, ranks, layout, precision, falsify)
    assert all(report == first for report in others), "all ranks judge alike"
    return first


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_isolation_is_proved_in_every_layout(name: str, precision: str) -> None:
    report = run(name, precision)
    assert report.holds, str(report)
    assert (report.moved, report.places) == (0, (0, 27, 28, 64, 88))
    assert report.own > 0


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_seen(leak: str) -> None:
    report = run("one", falsify=LEAKS[leak])
    assert not report.holds
    assert report.moved > 10 * report.allowed_move * report.own, "no near miss"


@pytest.mark.parametrize(
    "wrong", [{"moved": 2e-6}, {"own": 0.0}, {"apart": 2e-4}, {"moved": float("inf")}, {"apart": float("nan")}]
)
def test_each_measure_alone_can_refuse(wrong: dict[str, float]) -> None:
    good = IsolationReport((0, 4, 8), 16, moved=0.9e-6, own=0.1, apart=0.9e-4, allowed=1e-4, allowed_move=1e-5)
    assert good.holds
    assert not replace(good, **wrong).holds


@pytest.mark.parametrize("name", ["tp2-sequence-parallel", "pp2"])
def test_a_leak_is_seen_by_all_ranks(name: str) -> None:
    assert not run(name, "bf16", one_document).holds


def test_a_boundary_too_many_is_seen() -> None:
    report = run("one", falsify=one_too_many)
    assert report.moved == 0, "nothing leaks where too much is cut"
    assert not report.holds


def bounds_under(transformer_impl: str, precision: str) -> tuple[float, float]:
    plan = make_plan(precision=precision, batch={"sequence_length": 96})
    with process_groups(Launch.from_environment()) as groups:
        model = build_model(plan, groups)
        model.config.transformer_impl = transformer_impl
        report = measure_isolation(wrap_model(plan, model, groups), plan, groups)
        return report.allowed, report.allowed_move


@pytest.mark.parametrize(
    ("transformer_impl", "precision", "bounds"),
    [
        ("local", "fp32", (1e-4, 1e-5)),
        ("transformer_engine", "fp32", (5e-3, 1e-3)),
        ("transformer_engine", "bf16", (5e-2, 2e-2)),
    ],
)
def test_float32_of_te_is_judged_as_tf32(transformer_impl: str, precision: str, bounds: tuple[float, float]) -> None:
    (found,) = run_distributed(bounds_under, 1, transformer_impl, precision)
    assert found == bounds


def refusal_of(falsify: Falsify) -> str:
    plan = make_plan(batch={"sequence_length": 96})
    with process_groups(Launch.from_environment()) as groups:
        model = build_model(plan, groups)
        model.register_forward_pre_hook(partial(_hand_on, falsify), with_kwargs=True)
        with pytest.raises(SetupError) as caught:
            require_isolation(model, plan, groups)
        assert model.training, "the mode is as before"
        return str(caught.value)


def test_a_model_that_leaks_is_refused_with_the_numbers() -> None:
    (message,) = run_distributed(refusal_of, 1, one_document)
    assert message.startswith("document isolation full: the layers of this model do not keep it.\n  4 documents in 96")
    assert "runs across documents, or a document is cut" in message


def judged_not_finite() -> bool:
    plan = make_plan(batch={"sequence_length": 96})
    with process_groups(Launch.from_environment()) as groups:
        model = build_model(plan, groups)
        with torch.no_grad():
            model.output_layer.weight[0, 0] = float("nan")
        return measure_isolation(model, plan, groups).holds


def test_logits_that_are_not_numbers_prove_nothing() -> None:
    assert run_distributed(judged_not_finite, 1) == [False]


def short_row() -> str:
    plan = make_plan(batch={"sequence_length": 15})
    with process_groups(Launch.from_environment()) as groups:
        with pytest.raises(SetupError) as caught:
            measure_isolation(build_model(plan, groups), plan, groups)
        return str(caught.value)


def test_a_row_too_short_to_tell_is_refused() -> None:
    (message,) = run_distributed(short_row, 1)
    assert message.startswith("training.sequence_length: 15: isolation is proved on a row of at least 16 tokens")
