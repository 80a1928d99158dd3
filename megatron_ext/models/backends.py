"""Which layers a model is built of: the decision between `te` and `local`.

| backend | layers                                                      | needs                               |
|---------|-------------------------------------------------------------|-------------------------------------|
| te      | core's stock hybrid spec: Transformer Engine and mamba-ssm  | a GPU and `runtime/extensions.py` |
| local   | models/specs.py: plain torch, mamba-ssm's kernels on a GPU  | nothing                             |

Parameters, initial weights and checkpoint keys are the same, so a checkpoint of one loads into the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.distributed as dist

from data_tools.errors import SetupError
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.layer_pattern import MAMBA
from megatron_ext.recipe.schema import ModelRecipe
from megatron_ext.runtime.agreement import raise_on_all_ranks
from megatron_ext.runtime.extensions import missing_for_fp8, missing_for_packed_rows, missing_for_te

BackendName = Literal["local", "te"]

STOCK_GATED_NORM_EPSILON = 1e-5
"""Written into core's mixer, whatever `layernorm_epsilon` says (core 0.19, `ssm/mamba_mixer.py`)."""

_PROVED = "parallel.context_parallel_size is {}, which is proved on rows of several documents before training"


@dataclass(frozen=True)
class Backend:
    """The layers that a model gets here, and why in words."""

    name: BackendName
    reason: str


def choose_backend(plan: StagePlan) -> Backend:
    """Decides which layers the plan's model gets on this machine.

    Args:
        plan: `layout.backend` is what was asked.

    Raises:
        SetupError: `te` was asked for, or is needed, and cannot run here.
    """
    asked = plan.layout.backend
    lacks = missing_for_te() if asked != "local" else ()
    if plan.fp8 is not None and asked != "local" and not lacks and (lack := missing_for_fp8(plan.fp8.recipe)):
        raise SetupError(
            f"fp8.recipe: {plan.fp8.recipe}: these GPUs cannot: {lack}\n"
            "  Set fp8=null, which makes it another stage, or run it on GPUs that can (Hopper or later)."
        )
    wrong = (_other_maths(plan.model) or _unpacked(plan, lacks)) if asked != "local" else None
    if asked == "te" and lacks:
        raise SetupError(
            f"training.backend: te needs {' and '.join(lacks)}.\n"
            "  requirements/gpu.md says how to install it; or set training.backend=local, which trains the same model."
        )
    if asked == "te" and wrong:
        raise SetupError(f"training.backend: te cannot train this stage: {wrong}.\n  Set training.backend=local.")
    if asked != "local" and not lacks and not wrong:
        return Backend("te", "as asked" if asked == "te" else "a GPU, Transformer Engine and mamba-ssm are here")
    why_not = f"te cannot run here: {wrong or f'it needs {", ".join(lacks)}'}"
    _refuse_what_only_te_does(plan, "training.backend is local" if asked == "local" else why_not)
    return Backend("local", "as asked" if asked == "local" else why_not)


def _refuse_what_only_te_does(plan: StagePlan, why: str) -> None:
    ranks = plan.layout.context_parallel_size
    if ranks > 1:
        raise SetupError(
            f"parallel.context_parallel_size: {ranks}: only te splits a sequence over ranks, and {why}.\n"
            "  Set parallel.context_parallel_size=1 and use tensor parallelism, or make te possible "
            "(requirements/gpu.md)."
        )
    if plan.fp8 is not None:
        raise SetupError(
            f"fp8.recipe: {plan.fp8.recipe}: only te multiplies in fp8, and {why}.\n"
            "  Make te possible (requirements/gpu.md), or set fp8=null, which makes it another stage."
        )
    options = {
        "parallel.tp_comm_overlap": plan.layout.tp_comm_overlap,
        "training.cuda_graphs": plan.has_layer_graphs,
    }
    for key, is_asked in options.items():
        if is_asked:
            raise SetupError(
                f"{key}: true: only te has it, and {why}.\n"
                f"  Make te possible (requirements/gpu.md), or set {key}=false; the stage is the same."
            )


def backend_of_all_ranks(plan: StagePlan) -> BackendName:
    """The layers that every rank gets.

    All ranks must call this.

    Raises:
        SetupError: The ranks' machines differ, or one of them cannot run what was asked for. The backends order
            parameters differently: gradients of different parameters would be added without a word.
    """
    mine, error = None, None
    try:
        mine = choose_backend(plan)
    except SetupError as caught:
        error = caught
    raise_on_all_ranks(error)
    found: list[Any] = [mine] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    if len({backend.name for backend in found}) > 1:
        ranks_of = {backend: [rank for rank, other in enumerate(found) if other == backend] for backend in found}
        lines = "".join(f"  {b.name:<5} because {b.reason}: {_ranks(ranks)}\n" for b, ranks in ranks_of.items())
        raise SetupError(
            f"training.backend: {plan.layout.backend}: the ranks' machines take different layers.\n{lines}"
            "  Give all machines the same packages, or set training.backend=local."
        )
    name: BackendName = found[0].name
    return name


def _ranks(ranks: list[int]) -> str:
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank {', '.join(map(str, ranks[:8]))}{more}"


def _other_maths(model: ModelRecipe) -> str | None:
    if MAMBA in model.hybrid_layer_pattern and model.layernorm_epsilon != STOCK_GATED_NORM_EPSILON:
        return (
            f"model.layernorm_epsilon is {model.layernorm_epsilon:g}, but core's Mamba-2 layer normalises with "
            f"{STOCK_GATED_NORM_EPSILON:g} always"
        )
    return None


def _unpacked(plan: StagePlan, lacks: Sequence[str]) -> str | None:
    """Why core's Mamba-2 layers take no row of several documents, where the stage has such rows and te is there.

    With context parallelism every stage has them: the proof of isolation before training packs documents.
    """
    isolation, ranks = plan.data.document_isolation, plan.layout.context_parallel_size
    if lacks or (isolation == "none" and ranks == 1) or MAMBA not in plan.model.hybrid_layer_pattern:
        return None
    if reason := missing_for_packed_rows():
        why = f"data.document_isolation is {isolation}" if isolation != "none" else _PROVED.format(ranks)
        return (
            f"{why}, and core reads rows of several documents on its memory-efficient Mamba path only, for which "
            f"{reason} (requirements/gpu.md says how to install it)"
        )
    return None
