"""Where a report comes from: code, machines, files and dates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_ext.evaluate.results import Results
from megatron_ext.plan.lineage import RUNS_FILE, STAGE_FILE
from megatron_ext.runtime.code_version import code_version
from megatron_ext.study.lineage.lines import read_lines
from megatron_ext.study.lineage.record import RunFacts
from megatron_ext.study.report.content import Provenance
from megatron_ext.study.study_plan import StudyPlan

Runs = Mapping[str, tuple[RunFacts, ...]]
"""Of each stage, by its id, the lines of its runs.jsonl."""


def all_runs(plan: StudyPlan, unknown: list[str]) -> dict[str, tuple[RunFacts, ...]]:
    """What every run of every stage left of itself; () of stages from before runs did.

    Args:
        plan: The study.
        unknown: Takes a sentence for each line that cannot be read.
    """
    stages = Path(plan.run_root) / "stages"
    return {stage.stage_id: read_lines(stages / stage.stage_id / RUNS_FILE, RunFacts, unknown) for stage in plan.stages}


def hardware_of(runs: Runs) -> list[str]:
    """What stages were trained on: GPUs, or else the processor, each once."""
    found = []
    for line in (line for lines in runs.values() for line in lines):
        gpus = [str(gpu) for gpu in line.hardware.get("gpus") or ()]
        found += gpus or [f"cpu: {line.hardware.get('cpu') or line.hardware.get('machine')}"]
    return list(dict.fromkeys(found))


def provenance_of(
    plan: StudyPlan, results: Mapping[str, Results], runs: Runs, *, unknown: Sequence[str], command: str
) -> Provenance:
    """The foot of the report.

    Args:
        plan: The study.
        results: Of all evaluations, by node.
        runs: `all_runs` of it.
        unknown: Sentences on what could not be read.
        command: That asked for the report.
    """
    files = {stage.stage_id: Path(plan.run_root) / "stages" / stage.stage_id / STAGE_FILE for stage in plan.stages}
    engines = dict.fromkeys(
        f"{one.engine.name}, backend {one.engine.backend}, {one.engine.dtype}, {one.engine.device}"
        for one in results.values()
    )
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        version=_version(code_version().to_json()),
        study_file=plan.path,
        run_root=plan.run_root,
        stage_dates={
            stage_id: datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
            for stage_id, file in files.items()
            if file.is_file()
        },
        code={
            stage_id: "; ".join(dict.fromkeys(_version(line.code.model_dump()) for line in lines))
            for stage_id, lines in runs.items()
            if lines
        },
        hardware=tuple(hardware_of(runs)),
        evaluations={node: one.created for node, one in results.items()},
        engines=tuple(engines),
        unknown=tuple(unknown),
    )


def _version(code: Mapping[str, Any]) -> str:
    """A code version in a line: package, commit, files that differ from it, and the hash of all files."""
    parts = [f"megatron-ext {code.get('version') or 'not installed'}"]
    if code.get("commit"):
        parts.append(f"commit {code['commit'][:12]}")
    if code.get("changed"):
        parts.append(f"{len(code['changed'])} files changed since")
    return ", ".join([*parts, f"sha256 {str(code.get('sha256', 'not known'))[:12]}"])
