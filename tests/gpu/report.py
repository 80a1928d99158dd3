"""The report of the GPU check: what was measured on, a row a part, numbers, and the output of what failed."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.gpu.comparison import comparison_lines, recorded_file
from tests.gpu.part import Part
from tests.gpu.points import write_points

PACKAGES = ("torch", "triton", "megatron-core", "transformer-engine", "mamba-ssm", "causal-conv1d", "apex")


def machine(missing: list[str], *, gpus: int) -> dict[str, Any]:
    """What is measured on: the first `gpus` GPUs."""
    import importlib.metadata

    import torch

    from megatron_ext.runtime.code_version import code_version
    from megatron_ext.runtime.device import describe_gpus

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "gpus": describe_gpus()[:gpus],
        "cpu": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "cuda_of_torch": torch.version.cuda,
        "versions": versions,
        "missing": missing,
        "code_sha256": code_version().sha256,
    }


def stamp_of(facts: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a part that passed to count again."""
    return {key: facts[key] for key in ("gpus", "cuda_of_torch", "versions", "missing", "code_sha256")}


def write_report(out: Path, facts: dict[str, Any], parts: list[Part], *, is_recorded: bool = False) -> None:
    """Writes report.json, report.md and points.jsonl (points.py).

    With `is_recorded` the report goes to `tests/gpu/reports` too, without the output of parts.
    """
    report = {**facts, "parts": [asdict(part) for part in parts]}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text(markdown(facts, parts))
    write_points(out, facts, parts)
    print(f"{out / 'report.md'}\n{out / 'report.json'}")
    if is_recorded:
        file = recorded_file(facts["gpus"])
        without_output = {**facts, "parts": [part | {"output": ""} for part in report["parts"]]}
        file.write_text(json.dumps(without_output, indent=1) + "\n")
        print(f"{file}: commit it, and the next report stands beside it")


def markdown(facts: dict[str, Any], parts: list[Part]) -> str:
    """The report for people."""
    lines = [f"# GPU check, {facts['date']}", "", *(f"- {gpu}" for gpu in facts["gpus"]), f"- {facts['cpu']}"]
    lines += [f"- CUDA of torch {facts['cuda_of_torch']}"]
    lines += [f"- {package} {version}" for package, version in facts["versions"].items()]
    lines += [f"- missing: {what}" for what in facts["missing"]]
    lines += ["", "| part | result | seconds | passed | not run |", "|---|---|---|---|---|"]
    for part in parts:
        counts = part.facts.get("passed", ""), part.facts.get("skipped", "")
        lines.append(f"| {part.name} | {part.status} | {part.seconds:.0f} | {counts[0]} | {counts[1]} |")
    lines += [
        "",
        "| benchmark | model | rows x tokens | tokens/s | step, ms | MFU | bf16 matmul peak | GB at most | planned |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    lines += [_benchmark_row(part.facts) for part in parts if "mfu" in part.facts]
    for part in parts:
        lines += [f"- {part.name}: {what}" for what in _more_numbers(part.facts)]
    reasons = sorted({reason for part in parts for reason in part.facts.get("not_run", [])})
    lines += ["", *(f"- {reason}" for reason in reasons)]
    lines += comparison_lines({**facts, "parts": [asdict(part) for part in parts]})
    for part in parts:
        if part.output:
            lines += ["", f"## {part.name}", "", "```", *part.output.splitlines()[-80:], "```"]
    return "\n".join(lines) + "\n"


def _more_numbers(facts: dict[str, Any]) -> Iterator[str]:
    """Kinds of kernels, speeds of sampling, links, and the comparison with Megatron-LM, where they were measured."""
    if kernels := facts.get("kernels"):
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in kernels["shares"].items())
        yield f"the GPU is busy for {kernels['busy_ms']:.1f} ms of a step: {shares}"
    for key, how in {"sampled_tokens_per_s": "", "graphed_tokens_per_s": " as CUDA graphs"}.items():
        if speeds := facts.get(key):
            said = ", ".join(f"{speed:,.0f} of {texts} at once" for texts, speed in speeds.items())
            yield f"sampled tokens/s{how}: {said}"
    for name, speed in facts.get("collectives_gb_per_s", {}).items():
        yield f"{name} {speed:.1f} GB/s"
    if "times_of_megatron_lm" in facts:
        yield f"our step takes {facts['times_of_megatron_lm']:.3f}x the time of its own"


def _benchmark_row(facts: dict[str, Any]) -> str:
    return (
        f"| {facts['layers']} | {facts['model']} | {facts['rows']} x {facts['sequence_length']:,} | "
        f"{facts['tokens_per_s']:,.0f} | {facts['step_ms']:.1f} | {facts['mfu']:.1%} | "
        f"{facts['matmul_peak_tflops']:.0f} TFLOP/s | {facts['peak_memory'] / 1e9:.2f} | "
        f"{facts['planned_memory'] / 1e9:.2f} |"
    )
