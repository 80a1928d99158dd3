"""The compiled packages that the `te` backend needs, and whether they can be used here."""

from __future__ import annotations

import functools
import importlib
import importlib.util

from megatron_ext.runtime.device import has_gpu

TE_NEEDS = {
    "transformer-engine": "transformer_engine.pytorch.fp8",
    "mamba-ssm": "mamba_ssm.ops.triton.ssd_combined",
    "causal-conv1d": "causal_conv1d",
}
"""Package and the module of it that core 0.19 imports; a package whose extension does not load is missing."""


@functools.cache  # a package that is missing is looked for on the whole path, and every save asks
def missing_for_te() -> tuple[str, ...]:
    """What this machine lacks for `te`; empty where it can run."""
    missing = () if has_gpu() else ("a GPU",)
    return (*missing, *(lack for package, module in TE_NEEDS.items() if (lack := _lack(package, module))))


_FP8_NEEDS = {
    "tensorwise": ("is_fp8_available", "Float8CurrentScaling"),
    "blockwise": ("is_fp8_block_scaling_available", "Float8BlockScaling"),
}
"""Who says whether the GPU has a scaling, and what core 0.19 takes from `transformer_engine.common.recipe`."""


def missing_for_fp8(scaling: str) -> str | None:
    """Why products cannot be made in fp8 here; None where they can.

    To be asked where nothing is `missing_for_te`. Transformer Engine 2.x knows which GPUs and versions of CUDA have
    what (`FP8GlobalStateManager`): compute capability 8.9, for blocks 9.0 and CUDA 12.9.
    """
    from transformer_engine.common import recipe
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

    asked, kind = _FP8_NEEDS[scaling]
    if not hasattr(recipe, kind) or not hasattr(FP8GlobalStateManager, asked):
        return f"a transformer-engine that has {kind}"
    is_there, reason = getattr(FP8GlobalStateManager, asked)()
    return None if is_there else str(reason)


def missing_for_packed_rows() -> str | None:
    """Why core's memory-efficient Mamba path takes no packed rows here; None where it does.

    To be asked where nothing is `missing_for_te`. Core itself asserts it in the first forward pass (0.19.2,
    `ssm/mamba_mixer.py:747`), and has no other path for such rows (`:504`).
    """
    from megatron.core.ssm.mamba_mixer import _check_mamba_sequence_packing_support

    takes_them, reason = _check_mamba_sequence_packing_support(for_inference_not_training=False)
    return None if takes_them else reason


def has_exact_cross_entropy() -> bool:
    """Whether Transformer Engine's fused cross entropy keeps the gradients of bf16 logits in float32.

    It does from 2.18 on (TransformerEngine#3193). Before, they stood in the logits' own buffer, rounded to bf16, and
    trainings diverged: core 0.19 warns of the kernel, and Megatron-LM refuses it, whatever its version.
    """
    from megatron.core.utils import is_te_min_version

    return bool(is_te_min_version("2.18.0"))


def _lack(package: str, module: str) -> str | None:
    if importlib.util.find_spec(module.split(".")[0]) is None:
        return package
    try:
        importlib.import_module(module)
    except Exception as error:  # a compiled extension of another torch fails in its own ways
        return f"{package} that can be imported ({type(error).__name__}: {str(error).splitlines()[0]})"
    return None
