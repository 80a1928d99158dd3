"""`megatron-ext doctor`: what is installed here, and what it means."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from megatron_ext.runtime.device import communication_backend, describe_gpus, has_gpu
from megatron_ext.runtime.extensions import missing_for_te


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    found: str
    meaning: str


@dataclass(frozen=True)
class _Package:
    distribution: str
    module: str
    present: str
    absent: str


_PACKAGES = (
    _Package("megatron-core", "megatron.core", "the parallelism, optimizer and checkpoint format", "nothing can train"),
    _Package(
        "transformer-engine",
        "transformer_engine",
        "attention, MLP and norms of the te backend on a GPU",
        "no te backend: requirements/gpu.md",
    ),
    _Package(
        "mamba-ssm",
        "mamba_ssm",
        "Mamba-2 layers of te; the bf16 scan of local on a GPU",
        "no te backend; the scan runs in plain torch",
    ),
    _Package(
        "causal-conv1d",
        "causal_conv1d",
        "the convolution of Mamba-2 layers, as mamba-ssm",
        "no te backend; the convolution runs in plain torch",
    ),
    _Package("psutil", "psutil", "megatron-core's checkpoints need it", "no checkpoint can be written"),
    _Package("triton", "triton", "megatron-core imports it", "megatron-core cannot be imported"),
    _Package("tokenizers", "tokenizers", "trains and runs tokenizers", "no text can be tokenized"),
    _Package("tensorboard", "tensorboard", "logging.tensorboard: true works", "set logging.tensorboard: false"),
    _Package("wandb", "wandb", "logging.wandb_project works", "logging.wandb_project must stay null"),
    _Package(
        "nvidia-resiliency-ext",
        "nvidia_resiliency_ext",
        "slurm.hang_s and ft_launcher can watch over hanging ranks",
        "slurm.hang_s must stay null",
    ),
    _Package("transformers", "transformers", "the parity tests and benchmarks can run", "parity tests cannot run"),
)


def find() -> list[Finding]:
    """Looks at Python, CPU, threads, GPUs and packages."""
    packages = [_find_package(package) for package in _PACKAGES]
    machine = [_find_python(), _find_cpu(), _find_threads(), *_find_gpus()]
    return [*machine, *packages, _find_apex(), _find_adam(), _find_backend()]


def print_report() -> int:
    """Prints the findings as a table; returns 0, or 4 if nothing can train here."""
    findings = find()
    table = Table("what", "found", "meaning", title="megatron-ext doctor")
    for finding in findings:
        table.add_row(finding.what, finding.found, finding.meaning)
    Console().print(table)
    can_train = all(_can_be_found(name) for name in ("megatron.core", "triton", "psutil"))
    return 0 if can_train else 4


def _find_python() -> Finding:
    return Finding("python", platform.python_version(), "megatron-core 0.19 needs 3.12 or later")


def _find_cpu() -> Finding:
    flags = cpu_flags()
    fast = sorted(flags & {"avx512_bf16", "amx_bf16"})
    if fast:
        return Finding("cpu", ", ".join(fast), "bf16 matrix products are faster than fp32")
    return Finding("cpu", "no avx512_bf16, no amx_bf16", "precision: fp32 is the faster one without a GPU")


def cpu_flags() -> set[str]:
    """Instruction sets of this CPU; empty where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return set()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def _find_threads() -> Finding:
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    found = f"{threads} threads on {cores} cores"
    if threads > cores:
        return Finding("threads", found, "set OMP_NUM_THREADS to cores / processes: too many threads are very slow")
    return Finding("threads", found, "for several processes set OMP_NUM_THREADS to cores / processes")


def _find_gpus() -> list[Finding]:
    if not has_gpu():
        return [Finding("gpu", "none", f"everything runs on the CPU over {communication_backend()}")]
    return [
        Finding(f"gpu {index}", line, f"ranks talk over {communication_backend()}; `make gpu-check` measures it")
        for index, line in enumerate(describe_gpus())
    ]


def _find_package(package: _Package) -> Finding:
    try:
        version = importlib.metadata.version(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        return Finding(package.distribution, "not installed", package.absent)
    if not _can_be_found(package.module):
        return Finding(package.distribution, f"{version}, module {package.module} missing", package.absent)
    return Finding(package.distribution, version, package.present)


def _can_be_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _find_apex() -> Finding:
    """NVIDIA's apex is known by its compiled `amp_C`; the registry's package of that name is another project."""
    if _can_be_found("amp_C"):
        gives = "a fused Adam without Transformer Engine; weight gradients added within the matrix product"
        return Finding("apex", "NVIDIA's, with compiled kernels", gives)
    if _can_be_found("apex"):
        return Finding("apex", "not NVIDIA's, or built without kernels", "uninstall it; build NVIDIA's from source")
    return Finding("apex", "not installed", "nothing needs it")


def _find_adam() -> Finding:
    """Whose AdamW core 0.19 drives: the first of Transformer Engine's, apex's and torch's; on a CPU torch's."""
    if has_gpu() and not any(lack.startswith("transformer-engine") for lack in missing_for_te()):
        return Finding("optimizer", "FusedAdam of Transformer Engine", "one kernel updates many parameters")
    if has_gpu() and _can_be_found("amp_C"):
        return Finding("optimizer", "FusedAdam of apex", "one kernel updates many parameters")
    return Finding("optimizer", "AdamW of torch", "the log of a run names it too")


def _find_backend() -> Finding:
    lacks = missing_for_te()
    if lacks:
        return Finding("training.backend: auto", "local", f"te needs {', '.join(lacks)}: requirements/gpu.md")
    return Finding("training.backend: auto", "te", "core's stock layers: a GPU and all packages are here")
