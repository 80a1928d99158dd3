"""How long every shipped study takes to be planned, the start of the process included.

    python tests/benchmarks/study_plan.py

The best of three runs of each, wall and CPU seconds.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
RUNS = 3


def seconds(file: Path) -> tuple[float, float]:
    """Wall and CPU time of one plan."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "megatron_ext", "study", "plan", str(file)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Prints a line for each study whose sizes are declared; others need their data."""
    for file in sorted(REPOSITORY.glob("recipes/front_loading/*.yaml")):
        runs = [seconds(file) for _ in range(RUNS)]
        wall, cpu = (min(values) for values in zip(*runs, strict=True))
        print(f"{file.stem:<12} {wall:.2f} s wall, {cpu:.2f} s CPU", flush=True)


if __name__ == "__main__":
    main()
