"""Known notices of the packages below, which `doctor` tells once and better."""

from __future__ import annotations

import logging
import warnings

_PATTERNS = (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed. Falling back to Torch Norm",
    "full scope is deprecated",
    "MimoModelConfig is experimental",
    "torch.distributed is disabled, unavailable or uninitialized",
    "The argument order of load has been changed",
    "Only transformer-engine>=",
    "Could not determine rank from torch.distributed",
    "Transformer Engine cross entropy loss fusion has known stability issues",  # has_exact_cross_entropy asks
    "`torch.distributed.(all_gather_into|reduce_scatter)_tensor` is deprecated",
)
_OF_GPUS = "When using (sequence parallelism|async grad allreduce) it is recommended to set"
_LOG_PATTERN = "MCore's async save is deprecated"  # said of every save, the synchronous ones that we use included


def quiet_known_warnings() -> None:
    """Silences notices about optional packages that are absent; call it before core is imported."""
    from megatron_ext.runtime.device import has_gpu

    for pattern in (*_PATTERNS, *(() if has_gpu() else (_OF_GPUS,))):
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    saving = logging.getLogger("megatron.core.dist_checkpointing.strategies.torch")
    saving.addFilter(lambda record: _LOG_PATTERN not in record.getMessage())
