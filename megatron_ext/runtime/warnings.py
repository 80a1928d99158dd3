"""Known notices of the packages below, which `doctor` tells once and better."""

from __future__ import annotations

import logging
import warnings

_PATTERNS = (
    "Transformer Engine and Apex are not installed",
    "barrier\\(\\): using the device under current context",
)


def quiet_known_warnings() -> None:
    """Silences notices about optional packages that are absent; call it before core is imported."""
    for pattern in _PATTERNS:
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
