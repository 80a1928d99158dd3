"""Which backend a model gets, and what is said when it cannot be the one that was asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from packaging.version import Version

from data_tools.errors import SetupError
from megatron_ext.models.backends import choose_backend
from megatron_ext.models.config import transformer_config
from megatron_ext.plan.placement import placed
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.fp8_schema import Fp8Recipe
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


FP8 = {"precision": "bf16", "fp8": Fp8Recipe(recipe="tensorwise")}


def test_fp8_where_te_cannot_run_is_refused_and_read_in_bf16() -> None:
    with pytest.raises(SetupError, match="fp8.recipe: tensorwise: only te multiplies in fp8, and te cannot run here"):
        choose_backend(make_plan(layout={"backend": "auto"}, **FP8))
    assert choose_backend(placed(make_plan(layout={"backend": "auto"}, **FP8))).name == "local"


@pytest.mark.parametrize("key", ["parallel.tp_comm_overlap", "training.cuda_graphs"])
def test_an_option_of_te_is_not_left_out_without_a_word(key: str) -> None:
    plan = asked("auto", tp_comm_overlap=key.startswith("parallel"))
    execution = plan.execution.model_copy(update={"cuda_graphs": key.startswith("training")})
    with pytest.raises(SetupError, match=f"{key}: true: only te has it, and te cannot run here: it needs a GPU"):
        choose_backend(plan.model_copy(update={"execution": execution}))


def _fp8_modules(monkeypatch: pytest.MonkeyPatch, *, answer: tuple[bool, str], kinds: tuple[str, ...]) -> None:
    """What `missing_for_fp8` asks of Transformer Engine, as on a GPU that answers so."""
    for name in ("transformer_engine", "transformer_engine.common", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    recipe, fp8 = ModuleType("recipe"), ModuleType("fp8")
    vars(recipe).update(dict.fromkeys(kinds))
    sys.modules["transformer_engine.common"].recipe = recipe  # type: ignore[attr-defined]
    fp8.FP8GlobalStateManager = type("Manager", (), {"is_fp8_available": staticmethod(lambda: answer)})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch.fp8", fp8)
    monkeypatch.setattr("megatron_ext.models.backends.missing_for_te", list)


def test_fp8_on_a_gpu_that_has_none_is_refused_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "Device compute capability 8.9 or higher required for FP8 execution."
    _fp8_modules(monkeypatch, answer=(False, why), kinds=("Float8CurrentScaling",))
    with pytest.raises(SetupError, match=f"fp8.recipe: tensorwise: these GPUs cannot: {why}"):
        choose_backend(make_plan(layout={"backend": "te"}, **FP8))
    _fp8_modules(monkeypatch, answer=(True, ""), kinds=("Float8CurrentScaling",))
    assert choose_backend(make_plan(layout={"backend": "te"}, **FP8)).name == "te"


def test_an_engine_without_the_scaling_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _fp8_modules(monkeypatch, answer=(True, ""), kinds=())
    with pytest.raises(SetupError, match="a transformer-engine that has Float8CurrentScaling"):
        choose_backend(make_plan(layout={"backend": "te"}, **FP8))


def test_an_epsilon_that_the_stock_layer_ignores_is_not_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_ext.models.backends.missing_for_te", list)  # as where everything is there
    plan = make_plan(model={"layernorm_epsilon": 1e-6}, layout={"backend": "te"})
    with pytest.raises(SetupError, match="layernorm_epsilon is 1e-06, but core's Mamba-2 layer normalises with 1e-05"):
        choose_backend(plan)
    auto = make_plan(model={"layernorm_epsilon": 1e-6}, layout={"backend": "auto"})
    assert choose_backend(auto).name == "local"
    assert choose_backend(make_plan(layout={"backend": "auto"})).name == "te"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Everything that te needs, in the versions that core is to find."""

    def install(*, mamba_ssm: str = "2.3.2", causal_conv1d: str = "1.7.0") -> None:
        monkeypatch.setattr("megatron_ext.models.backends.missing_for_te", list)
        monkeypatch.setattr("megatron.core.utils._mamba_ssm_version", Version(mamba_ssm))
        monkeypatch.setattr("megatron.core.utils._causal_conv1d_version", Version(causal_conv1d))

    return install


@pytest.mark.parametrize("isolation", ["attention", "full"])
@pytest.mark.parametrize(
    ("old", "needed"),
    [({"mamba_ssm": "1.2.0"}, "mamba_ssm >= 2.0.0"), ({"causal_conv1d": "1.3.0"}, "causal_conv1d >= 1.4.0")],
)
def test_te_whose_mamba_layers_take_no_packed_rows_is_refused_before_it_is_built(
    installed: Callable[..., None], isolation: str, old: dict[str, str], needed: str
) -> None:
    installed(**old)
    packed = {"data": {"document_isolation": isolation}}
    with pytest.raises(SetupError) as caught:
        choose_backend(make_plan(layout={"backend": "te"}, **packed))
    assert str(caught.value) == (
        f"training.backend: te cannot train this stage: data.document_isolation is {isolation}, and core reads rows "
        f"of several documents on its memory-efficient Mamba path only, for which {needed} is required "
        "(requirements/gpu.md says how to install it).\n  Set training.backend=local."
    )
    auto = choose_backend(make_plan(layout={"backend": "auto"}, **packed))
    assert (auto.name, needed in auto.reason) == ("local", True)


def test_te_that_takes_packed_rows_or_has_none_to_take_is_no_error(installed: Callable[..., None]) -> None:
    full = {"document_isolation": "full"}
    installed(mamba_ssm="2.0.0", causal_conv1d="1.4.0")
    assert choose_backend(make_plan(layout={"backend": "te"}, data=full)).name == "te"
    installed(mamba_ssm="1.2.0")
    assert choose_backend(make_plan(layout={"backend": "te"})).name == "te"
    no_mamba = make_plan(model={"hybrid_layer_pattern": "*-*-"}, layout={"backend": "te"}, data=full)
    assert choose_backend(no_mamba).name == "te"


def test_te_splits_a_sequence_over_ranks(installed: Callable[..., None]) -> None:
    installed()
    assert choose_backend(asked("te", context_parallel_size=2)).name == "te"


@pytest.mark.parametrize("backend", ["te", "auto"])
def test_a_sequence_is_not_split_where_the_proof_of_isolation_could_not_run(
    installed: Callable[..., None], backend: str
) -> None:
    installed(mamba_ssm="1.2.0")
    with pytest.raises(SetupError) as caught:
        choose_backend(asked(backend, context_parallel_size=2))
    assert (
        "parallel.context_parallel_size is 2, which is proved on rows of several documents before training, and core "
        "reads rows of several documents on its memory-efficient Mamba path only, for which mamba_ssm >= 2.0.0 is "
        "required"
    ) in str(caught.value)


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
        "cross_entropy_fusion_impl",
    }
