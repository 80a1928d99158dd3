"""Compiles what the benchmark's Mamba-2 layers need, on several cores at once, into Triton's cache.

    python -m tests.gpu.compile_kernels --backend te [--processes 12]

Each process trains one Mamba-2 layer of the benchmark's sizes for one step, with its share of the configurations
(`triton_share/sitecustomize.py`). The benchmark loads what they compiled. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from tests.gpu.part import share


def main() -> None:
    """Compiles for one backend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["local", "te"], required=True)
    parser.add_argument("--processes", type=int, default=max(1, min(12, (os.cpu_count() or 1) // 2)))
    args, rest = parser.parse_known_args()
    command = [sys.executable, "-m", "tests.gpu.benchmark", "--backend", args.backend, "--only-mamba", *rest]
    began = time.monotonic()
    running = [
        subprocess.Popen(command, env=share(f"{first}/{args.processes}"), stdout=subprocess.DEVNULL)
        for first in range(args.processes)
    ]
    failed = [process.args for process in running if process.wait()]
    print(json.dumps({"processes": args.processes, "seconds": time.monotonic() - began}))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
