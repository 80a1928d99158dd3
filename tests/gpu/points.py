"""The plain training steps of a report, in the form that `plan --points` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ext.plan.hardware import GPUS
from megatron_ext.plan.measured import MeasuredPoint
from tests.gpu.part import Part

USED = ("mamba-ssm", "causal-conv1d")
"""Packages without which a backend computes otherwise; te does not run without its own."""


def points_of(facts: dict[str, Any], parts: list[Part], *, source: str) -> list[MeasuredPoint]:
    """Every step on one known GPU whose documents are not kept apart.

    Args:
        facts: Of the machine.
        parts: Of the check; those without an MFU are no benchmarks.
        source: The report.
    """
    gpu = next((name for name in GPUS if name in facts["gpus"][0].lower()), None)
    measured = [part for part in parts if "mfu" in part.facts and not part.facts.get("document_tokens")]
    if gpu is None:
        return []
    return [_point(facts, part, gpu, source) for part in measured if part.facts.get("gpus", 1) == 1]


def write_points(out: Path, facts: dict[str, Any], parts: list[Part]) -> None:
    """Writes `points.jsonl` beside the report, where there are any."""
    if points := points_of(facts, parts, source=str(out / "report.json")):
        (out / "points.jsonl").write_text("".join(f"{point.model_dump_json()}\n" for point in points))


def _point(facts: dict[str, Any], part: Part, gpu: str, source: str) -> MeasuredPoint:
    step, kernels = part.facts, part.facts.get("kernels", {})
    busy, shares = kernels.get("busy_ms"), kernels.get("shares", {})
    apart = {"products": shares.get("matrix products", 0.0), "ssd": shares.get("ssd", 0.0)}
    kinds = apart | {"rest": 1 - sum(apart.values()) - shares.get("attention", 0.0)} if shares else {}
    return MeasuredPoint(
        name=f"{gpu} {part.name} {facts['date'][:16]}",
        date=facts["date"][:10],
        commit=facts["code_sha256"][:12],
        source=source,
        gpu=gpu,
        versions=facts["versions"],
        without=[package for package in USED if facts["versions"].get(package) == "not installed"],
        model=step["model"],
        backend=step["backend"],
        precision=step["precision"],
        cross_entropy=step["cross_entropy"],
        rows=step["rows"],
        sequence_length=step["sequence_length"],
        steps=step["steps"],
        step_ms=step["step_ms"],
        busy_ms=busy,
        kinds_ms={kind: busy * share for kind, share in kinds.items() if share > 0},
        matmul_peak_tflops=step["matmul_peak_tflops"],
        peak_memory=step["peak_memory"],
    )
