# ruff: noqa: E402 (the stand-ins must be there before core is imported)
"""Which layers of core's stock hybrid run inside Transformer Engine's fp8 context; run as a program.

    python -m tests.support.fp8_on_cpu REPORT.json

The context is a stand-in that notes its recipe; the stack that enters it around its layers is core's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # core's squared_relu is compiled; a CPU may have no compiler

from tests.support import extensions_on_cpu

ACTIVE: list[str] = []
"""The scaling of the context that is entered now."""


class _Scaling:
    def __init__(self, fp8_format: str, **_: Any) -> None:
        self.name = f"{type(self).__name__} {fp8_format}"


class Float8CurrentScaling(_Scaling):
    pass


class Float8BlockScaling(_Scaling):
    pass


@contextlib.contextmanager
def fp8_autocast(*, enabled: bool, fp8_recipe: _Scaling, fp8_group: Any) -> Iterator[None]:
    assert enabled
    assert fp8_group is not None
    ACTIVE.append(fp8_recipe.name)
    try:
        yield
    finally:
        ACTIVE.pop()


extensions_on_cpu.install()
_te = sys.modules["transformer_engine"]
_te.__version__ = "2.3.0"  # type: ignore[attr-defined]
vars(_te.common.recipe).update(  # type: ignore[attr-defined]
    Float8CurrentScaling=Float8CurrentScaling,
    Float8BlockScaling=Float8BlockScaling,
    Format=type("Format", (), {"HYBRID": "hybrid", "E4M3": "e4m3"}),
)
_te.pytorch.fp8_autocast = fp8_autocast  # type: ignore[attr-defined]

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.models.build import build_model
from megatron_ext.models.config import without_fp8
from megatron_ext.recipe.fp8_schema import Fp8Recipe
from megatron_ext.training.parts import wrap_model
from tests.support.one_process import one_process, random_tokens
from tests.support.plans import make_plan

CASES: dict[str, dict[str, Any]] = {
    "tensorwise": {"recipe": "tensorwise", "bf16_edge_layers": 1},
    "blockwise": {"recipe": "blockwise", "format": "e4m3"},
}


def contexts_of(groups: ProcessGroupCollection, options: dict[str, Any]) -> dict[str, Any]:
    """The context in which each linear layer ran, with fp8 and where it is taken away for a while."""
    plan = make_plan(model={"mamba_num_heads": 16}, precision="bf16", fp8=Fp8Recipe(**options))
    model = wrap_model(plan, build_model(plan, groups, backend="te"), groups)
    seen: dict[str, str | None] = {}
    linears = {
        name.removeprefix("module.module."): module
        for name, module in model.named_modules()
        if isinstance(module, extensions_on_cpu.Linear) or name.endswith("output_layer")
    }
    for name, module in linears.items():
        module.register_forward_pre_hook(lambda *_, name=name: seen.__setitem__(name, ACTIVE[-1] if ACTIVE else None))
    tokens = random_tokens(1, 32)
    positions = torch.arange(32)[None]
    model(tokens, positions, None)
    facts: dict[str, Any] = {"with": dict(seen)}
    casts_again = [getattr(module, "is_first_microbatch", None) for module in linears.values()]
    model.set_is_first_microbatch()  # core's schedule does so in the first microbatch of every step
    casts_then = [getattr(module, "is_first_microbatch", None) for module in linears.values()]
    facts["casts"] = [sorted({str(flag) for flag in flags}) for flags in (casts_again, casts_then)]
    with without_fp8(model.config):
        model(tokens, positions, None)
    return facts | {"without": sorted({str(context) for context in seen.values()}), "restored": model.config.fp8}


def main() -> None:
    with one_process() as groups:
        report = {name: contexts_of(groups, options) for name, options in CASES.items()}
    Path(sys.argv[1]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
