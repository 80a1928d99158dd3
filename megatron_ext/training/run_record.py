"""`runs.jsonl` of a stage: a line for each run that trained it, written as its first step is about to begin.

| field          | holds |
|----------------|-------|
| started        | UTC, ISO 8601 |
| begins_at_step | steps that were trained before it; a later line with fewer trained the steps behind it anew |
| begins_from    | stage, checkpoint, and fingerprint of the weights that it took up; null where they were drawn |
| code           | `runtime/code_version.py`: version, sha256 and number of files, commit, files changed since |
| versions       | of Python and of packages that numbers may hang on |
| hardware       | machine, cpu, cores, gpus of the main rank's machine |
| layout         | parallel sizes, and world_size |
| backend        | local or te |

None of it is part of a stage's id: the same stage may go on with other code on another machine, and the lines say so.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from megatron_ext.models.backends import choose_backend
from megatron_ext.plan.lineage import RUNS_FILE
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.code_version import code_version, versions
from megatron_ext.runtime.device import describe_gpus
from megatron_ext.training.checkpoint_facts import layout_of
from megatron_ext.training.file_list import weights_fingerprint


def record_run(folder: Path, plan: StagePlan, *, begins_at_step: int = 0, begins_from: Path | None = None) -> None:
    """Adds a line to `runs.jsonl`. Only the main rank may call this, with the folder taken.

    Args:
        folder: Of the stage.
        plan: As it runs here.
        begins_at_step: Steps that are behind it.
        begins_from: The checkpoint whose weights it takes up; None where it begins with new ones.
    """
    line: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "begins_at_step": begins_at_step,
        "begins_from": _checkpoint(begins_from),
        "code": code_version().to_json(),
        "versions": versions(),
        "hardware": {
            "machine": platform.machine(),
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "gpus": describe_gpus(),
        },
        "layout": layout_of(plan) | {"world_size": plan.layout.world_size},
        "backend": choose_backend(plan).name,
    }
    with (folder / RUNS_FILE).open("ab+") as file:
        file.write(b"" if _ends_a_line(file) else b"\n")  # else a line that a kill has cut would spoil this one too
        file.write(json.dumps(line).encode() + b"\n")


def _ends_a_line(file: BinaryIO) -> bool:
    """Whether the next byte begins a line."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return True
    file.seek(size - 1)
    return file.read(1) == b"\n"


def _checkpoint(path: Path | None) -> dict[str, str] | None:
    if path is None:
        return None
    return {"stage_id": path.parents[1].name, "checkpoint": path.name, "weights": weights_fingerprint(path)}


def _cpu_name() -> str | None:
    """As the system calls it; None where it does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
