"""How long every shipped study takes to be planned, the start of the process included.

    python tests/benchmarks/study_plan.py

The best of three runs of each, wall and CPU seconds. A study that declares no sizes needs its data, in the working
directory as for any command; it is named where that is not there.
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


def seconds(file: Path) -> tuple[float, float] | None:
    """Wall and CPU time of one plan; None where it is refused."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "megatron_ext", "study", "plan", str(file)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    if done.returncode:
        return None
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Prints a line for each study."""
    for file in sorted(REPOSITORY.glob("recipes/*/*.yaml")):
        if "\nstudy: " not in file.read_text(encoding="utf-8"):
            continue
        runs = [taken for _ in range(RUNS) if (taken := seconds(file)) is not None]
        name = f"{file.parent.name}/{file.stem}"
        if not runs:
            print(f"{name:<25} not planned: its data are not there", flush=True)
            continue
        wall, cpu = (min(values) for values in zip(*runs, strict=True))
        print(f"{name:<25} {wall:.2f} s wall, {cpu:.2f} s CPU", flush=True)


if __name__ == "__main__":
    main()
