"""Which parts the GPU check has, and in which order: tests and compilation side by side, then what measures, alone.

The tests take the smallest configuration of each Triton kernel; the benchmarks choose among all. What answers the
most stands first, so that a check that runs out of time has it. What takes longer than a check may, or needs more
than the packages, is run by its name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.part import Wanted, module_words, pytest_words, read_json, read_junit

TESTS = {
    "training": ("test_training", 300),
    "fine-tuning": ("test_sft", 300),
    "backends": ("test_backends_agree", 240),
    "packed rows": ("test_packed_rows", 240),
    "kernels": ("test_kernels", 240),
    "sampling": ("test_rollout", 240),
    "rl": ("test_rl", 300),
}
LARGE = ("--model", "recipes/models/hybrid_1b.yaml", "--rows", "1", "--sequence-length", "8192", "--steps", "10")
"""Of the benchmarks: 1.0B parameters, a row of 8,192 tokens."""


def parts_of(out: Path, *, gpus: int, cores: int, missing: Sequence[str]) -> list[Wanted]:
    """Every part that a machine could run, the missing packages noted.

    Args:
        out: Folder that takes what tests write.
        gpus: To use; above 1 the layouts and the network are looked at too.
        cores: Of the machine.
        missing: What backend te lacks here.
    """
    lacks = {"te": tuple(missing), "local": ()}
    parts = [_compilation(name, lacks[name]) for name in lacks]
    workers = ("-n", str(min(4, cores // 4)))  # 0: in pytest's own process
    parts += [_tests(out, name, file, limit_s, *workers) for name, (file, limit_s) in TESTS.items()]
    parts += [_benchmark(f"benchmark {name}", name, lacks[name]) for name in lacks]
    if gpus > 1:
        parts += _of_several_gpus(out, gpus, lacks["te"])
    parts += [_benchmark(f"benchmark {name} 1b", name, lacks[name], *LARGE, "--kernels") for name in lacks]
    return [*parts, *_on_request(out, lacks["te"])]


def _compilation(name: str, lacks: tuple[str, ...]) -> Wanted:
    words = module_words("compile_kernels", "--backend", name)
    return Wanted(f"compile {name}", 240, words, read_json, lacks=lacks, alone=False)


def _tests(out: Path, name: str, file: str, limit_s: float, *workers: str) -> Wanted:
    junit = out / f"{file}.xml"
    words = pytest_words(file, junit, *workers)
    return Wanted(name, limit_s, words, read_junit, junit, alone=False, smallest_only=True)


def _benchmark(name: str, backend: str, lacks: tuple[str, ...], *options: str, gpus: int = 1) -> Wanted:
    words = module_words("benchmark", "--backend", backend, *options, gpus=gpus)
    return Wanted(name, 150, words, read_json, lacks=lacks, gpus=gpus)


def _of_several_gpus(out: Path, gpus: int, lacks: tuple[str, ...]) -> list[Wanted]:
    layouts = [_layouts(out, "local", "local", gpus), _layouts(out, "te", "not local", gpus, lacks)]
    network = Wanted("network", 60, module_words("network", gpus=gpus), read_json, gpus=gpus)
    data = _benchmark(f"benchmark te 1b, data x {gpus}", "te", lacks, *LARGE, "--sharded", gpus=gpus)
    tensor = 2 if gpus % 2 == 0 else 1
    tensors = ("--tensor", str(tensor))
    mixed = _benchmark(
        f"benchmark te 1b, tensor {tensor} x data {gpus // tensor}", "te", lacks, *LARGE, *tensors, gpus=gpus
    )
    return [network, *layouts, data, *([mixed] if tensor > 1 else [])]


def _layouts(out: Path, backend: str, chosen_by: str, gpus: int, lacks: tuple[str, ...] = ()) -> Wanted:
    """Of one backend, so that what has passed of the other is kept; `te` alone would match every name."""
    junit = out / f"test_layouts_{backend}.xml"
    words = pytest_words("test_layouts", junit, "-k", chosen_by)
    return Wanted(f"layouts {backend}", 480, words, read_junit, junit, lacks=lacks, gpus=gpus, smallest_only=True)


def _on_request(out: Path, lacks: tuple[str, ...]) -> list[Wanted]:
    checkout = () if os.environ.get("MEGATRON_LM") else ("MEGATRON_LM, the path of a checkout of Megatron-LM",)
    megatron = module_words("against_megatron")
    return [
        _long_tests(out, "loss curves", "test_loss_curves", 900, lacks),
        _long_tests(out, "options of te", "test_te_options", 600, lacks),
        _long_tests(out, "graphs of sampling", "test_graphed_sampling", 300, ()),
        Wanted("megatron-lm", 600, megatron, read_json, lacks=(*lacks, *checkout), on_request=True),
    ]


def _long_tests(out: Path, name: str, file: str, limit_s: float, lacks: tuple[str, ...]) -> Wanted:
    junit = out / f"{file}.xml"
    return Wanted(name, limit_s, pytest_words(file, junit), read_junit, junit, lacks=lacks, on_request=True)


def chosen(parts: Sequence[Wanted], names: Sequence[str]) -> list[Wanted]:
    """The parts of these names, or without names all that need not be asked for.

    Raises:
        ValueError: There is no such part.
    """
    known = {part.name for part in parts}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no part {unknown[0]!r}; there are: {', '.join(sorted(known))}")
    return [part for part in parts if (part.name in names if names else not part.on_request)]
