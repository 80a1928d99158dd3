"""What can be said about this machine's GPU in at most fifteen minutes: tests/gpu, then a training step's speed.

    make gpu-check        or        python tests/gpu/check.py [--out gpu-check]

Installs nothing. Tests run side by side, benchmarks after them, alone. Writes `gpu-check/report.md` and
`report.json`; says what is missing; what it does not reach in time is "not run: out of time". Exit codes: 0 all that
could run passed, 1 something failed or did not end, 4 no GPU (make turns any of them but 0 into its own 2).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SHARE = Path(__file__).parent / "triton_share"
TOTAL_S = 900.0
SPARE_S = 10.0
"""Kept back for the report."""
GRACE_S = 5.0
"""For processes to end in order, once told so."""


@dataclass
class Part:
    """One part of the check.

    Attributes:
        status: passed, "failed…", or "not run: why".
        facts: Numbers for the report.
    """

    name: str
    status: str
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    output: str = ""


def main(argv: list[str] | None = None) -> int:
    """Runs all parts and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "gpu-check", help="folder of the report")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="after this long nothing is running any more")
    args = parser.parse_args(argv)
    deadline = time.monotonic() + args.seconds - SPARE_S
    sys.path.insert(0, str(REPOSITORY))
    from megatron_ext.runtime.device import has_gpu
    from megatron_ext.runtime.extensions import missing_for_te

    missing = list(missing_for_te())
    for what in missing:
        print(f"missing: {what}")
    if not has_gpu():
        print("no GPU: nothing was run. requirements/gpu.md says what to install where there is one.")
        return 4
    args.out.mkdir(parents=True, exist_ok=True)
    parts = run_all(args.out, missing, deadline, cores=os.cpu_count() or 1)
    write_report(args.out, machine(missing), parts)
    return exit_code(parts)


def run_all(out: Path, missing: list[str], deadline: float, *, cores: int) -> list[Part]:
    """Tests and compilation side by side, as many as the cores allow, then one benchmark after another, alone.

    The tests take the smallest configuration of each Triton kernel; the benchmarks choose among all.
    """
    workers = ("-n", str(min(4, cores // 4)))  # 0: in pytest's own process
    tests = [
        ("training", 300, pytest_run("test_training", out, *workers)),
        ("fine-tuning", 300, pytest_run("test_sft", out, *workers)),
        ("backends", 240, pytest_run("test_backends_agree", out, *workers)),
        ("packed rows", 240, pytest_run("test_packed_rows", out, *workers)),
        ("kernels", 240, pytest_run("test_kernels", out, *workers)),
        ("sampling", 240, pytest_run("test_rollout", out, *workers)),
        ("rl", 300, pytest_run("test_rl", out, *workers)),
    ]
    lacks: dict[str, list[str]] = {"te": missing, "local": []}
    with ThreadPoolExecutor(max(1, cores // 3)) as pool:
        running = [
            pool.submit(
                run_part,
                f"compile {name}",
                240,
                deadline,
                module_run("compile_kernels", name),
                read_json,
                unless=lacks[name],
            )
            for name in lacks
        ]
        running += [
            pool.submit(run_part, name, limit, deadline, command, read_junit, smallest_only=True)
            for name, limit, command in tests
        ]
        parts = [part.result() for part in running]
    return parts + [
        run_part(f"benchmark {name}", 150, deadline, module_run("benchmark", name), read_json, unless=lacks[name])
        for name in lacks
    ]


def share(which: str) -> dict[str, str]:
    """The environment in which Triton tries the share of configurations that triton_share calls `which`."""
    path = os.pathsep.join(filter(None, [str(SHARE), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "TRITON_SHARE": which}


def exit_code(parts: list[Part]) -> int:
    """1 when a part failed; a part that hangs has failed too."""
    return int(any(part.status.startswith("failed") for part in parts))


def pytest_run(name: str, out: Path, *options: str) -> tuple[list[str], Path]:
    """A pytest command and the file that it writes."""
    junit = out / f"{name}.xml"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={junit}", *options]
    return [*words, f"tests/gpu/{name}.py"], junit


def module_run(name: str, backend: str) -> tuple[list[str], None]:
    """A command that prints a line of JSON."""
    return [sys.executable, "-m", f"tests.gpu.{name}", "--backend", backend], None


def run_part(
    name: str,
    limit_s: float,
    deadline: float,
    command: tuple[list[str], Path | None],
    read: Callable[[str, Path | None], dict[str, Any]],
    *,
    unless: list[str] | None = None,
    smallest_only: bool = False,
) -> Part:
    """Runs one command within its own limit and the whole check's; `smallest_only`: Triton takes its smallest."""
    if unless:
        return _said(Part(name, f"not run: needs {' and '.join(unless)}"))
    left = min(limit_s, deadline - time.monotonic())
    if left <= 0:
        return _said(Part(name, "not run: out of time"))
    began = time.monotonic()
    words, file = command
    environment = (share("none") if smallest_only else dict(os.environ)) | {"TRITON_CACHE_AUTOTUNING": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), environment.get("PYTHONPATH")]))
    with subprocess.Popen(
        words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            _end(process)
            output, _ = process.communicate()
            return _said(Part(name, f"failed: still running after {left:.0f} s", left, output=output))
    status = "passed" if process.returncode == 0 else "failed"
    facts = read(output, file) if status == "passed" or file is not None else {}
    if facts and not facts.get("passed", 1) and status == "passed":
        status = "not run: every test was skipped"
    return _said(Part(name, status, time.monotonic() - began, facts, "" if status == "passed" else output))


def _end(process: subprocess.Popen[str]) -> None:
    """Ends its process group, in order first: torchrun then ends its ranks, which no kill of the group reaches."""
    os.killpg(process.pid, signal.SIGTERM)
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until:
        process.poll()  # one that has ended stays in its group until it is asked
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)


def _said(part: Part) -> Part:
    print(f"{part.name}: {part.status} ({part.seconds:.0f} s)", flush=True)
    return part


def read_junit(_output: str, file: Path | None) -> dict[str, Any]:
    """Counts of a pytest run, and the reasons of what was not run."""
    if file is None or not file.is_file():
        return {}
    suite = next(ElementTree.parse(file).getroot().iter("testsuite"))
    counts = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    reasons = sorted({str(skip.get("message")) for skip in suite.iter("skipped")})
    return {"passed": passed, **counts, "not_run": reasons}


def read_json(output: str, _file: Path | None) -> dict[str, Any]:
    """The last line that is JSON."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


def machine(missing: list[str]) -> dict[str, Any]:
    """What was measured on."""
    import importlib.metadata

    import torch

    from megatron_ext.runtime.device import describe_gpus

    versions = {}
    for package in ("torch", "triton", "megatron-core", "transformer-engine", "mamba-ssm", "causal-conv1d", "apex"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "gpus": describe_gpus(),
        "cpu": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "cuda_of_torch": torch.version.cuda,
        "versions": versions,
        "missing": missing,
    }


def write_report(out: Path, facts: dict[str, Any], parts: list[Part]) -> None:
    """Writes report.json and report.md."""
    (out / "report.json").write_text(json.dumps({**facts, "parts": [asdict(part) for part in parts]}, indent=1) + "\n")
    (out / "report.md").write_text(markdown(facts, parts))
    print(f"{out / 'report.md'}\n{out / 'report.json'}")


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
    reasons = sorted({reason for part in parts for reason in part.facts.get("not_run", [])})
    lines += ["", *(f"- {reason}" for reason in reasons)]
    for part in parts:
        if part.output:
            lines += ["", f"## {part.name}", "", "```", *part.output.splitlines()[-80:], "```"]
    return "\n".join(lines) + "\n"


def _benchmark_row(facts: dict[str, Any]) -> str:
    return (
        f"| {facts['layers']} | {facts['model']} | {facts['rows']} x {facts['sequence_length']:,} | "
        f"{facts['tokens_per_s']:,.0f} | {facts['step_ms']:.1f} | {facts['mfu']:.1%} | "
        f"{facts['matmul_peak_tflops']:.0f} TFLOP/s | {facts['peak_memory'] / 1e9:.2f} | "
        f"{facts['planned_memory'] / 1e9:.2f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
