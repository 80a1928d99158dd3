"""Same recipe, same machine, same layout: the same bits.

torch then takes only kernels that are deterministic, and raises where an operation has none. What torch does
not see reads the environment, when it is first used: cuBLAS, NCCL, Transformer Engine's attention; Megatron-Core's
and mamba-ssm's Triton kernels follow torch. On a CPU with a fixed number of threads everything here is
deterministic anyway.

Source of the variables: `megatron/training/determinism.py` of Megatron-LM core_v0.19.
"""

from __future__ import annotations

import os

from data_tools.errors import SetupError

_ALLOWED = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NCCL_ALGO": ("Ring", "CollnetDirect", "CollnetChain", "^NVLS"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
    "MAMBA_DETERMINISTIC": ("1",),
}
"""Variables and the values, alone or listed, under which their library is deterministic; the first is the default."""


def be_deterministic() -> None:
    """Prepares this process; call it before the GPU is first used.

    Raises:
        SetupError: A variable is set to a value that is not deterministic.
    """
    for name, allowed in _ALLOWED.items():
        value = os.environ.get(name, allowed[0])
        if not set(value.split(",")) <= set(allowed):
            raise SetupError(
                f"{name}={value}: not deterministic, and training.deterministic is true. "
                f"Unset it, set it to {' or '.join(allowed)}, or set training.deterministic=false."
            )
    for name, allowed in _ALLOWED.items():
        os.environ.setdefault(name, allowed[0])
    import torch

    torch.use_deterministic_algorithms(True)
