"""Lets Triton try only a share of each kernel's configurations: TRITON_SHARE=FIRST/STEP, every STEP-th from FIRST.

Python imports a file of this name when it starts, so with this folder on PYTHONPATH it reaches every process of a
run. mamba-ssm's autotuned kernels have some two hundred configurations in all, each compiled anew for other shapes:
minutes on one core. A result does not depend on them, so the tests take the first (`0/1000`); before a benchmark
some processes compile a share each into Triton's cache, and the benchmark then chooses among all.
"""

from __future__ import annotations

import os
from typing import Any

if "TRITON_SHARE" in os.environ:
    from triton.runtime.autotuner import Autotuner

    first, step = (int(part) for part in os.environ["TRITON_SHARE"].split("/"))
    _make = Autotuner.__init__

    def _make_with_share(self: Any, fn: Any, arg_names: Any, configs: Any, *rest: Any, **named: Any) -> None:
        _make(self, fn, arg_names, configs and configs[first % len(configs) :: step], *rest, **named)

    Autotuner.__init__ = _make_with_share
