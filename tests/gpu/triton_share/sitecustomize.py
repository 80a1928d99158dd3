"""Lets Triton try few of each kernel's configurations: TRITON_SHARE=FIRST/STEP, every STEP-th from FIRST.

Python imports a file of this name when it starts, so with this folder on PYTHONPATH it reaches every process of a
run. mamba-ssm's autotuned kernels have some two hundred configurations in all, each compiled anew for other shapes:
minutes on one core. A result does not depend on them, so the tests take the smallest alone (`none`); before a
benchmark some processes compile a share each into Triton's cache, and the benchmark then chooses among all. A share
has the smallest too: others ask for more shared memory than some GPUs have, which the autotuner passes over only
while there is a choice.
"""

from __future__ import annotations

import math
import os
from typing import Any

if "TRITON_SHARE" in os.environ:
    from triton.runtime.autotuner import Autotuner

    _make = Autotuner.__init__

    def _size(config: Any) -> int:
        return math.prod(value for key, value in config.kwargs.items() if "BLOCK" in key) * config.num_stages

    def _share(configs: Any) -> Any:
        smallest = min(configs, key=_size)
        if os.environ["TRITON_SHARE"] == "none":
            return [smallest]
        first, step = (int(part) for part in os.environ["TRITON_SHARE"].split("/"))
        return [smallest, *(config for config in configs[first::step] if config is not smallest)]

    def _make_with_share(self: Any, fn: Any, arg_names: Any, configs: Any, *rest: Any, **named: Any) -> None:
        _make(self, fn, arg_names, configs and _share(configs), *rest, **named)

    Autotuner.__init__ = _make_with_share
