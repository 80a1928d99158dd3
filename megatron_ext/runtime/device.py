"""Which device this process uses, and how Megatron-Core runs where there is no GPU.

The only file of this project that names `cuda`, names of core's own functions apart.

Megatron-Core 0.19 writes `device="cuda"` and calls `torch.cuda` in its schedules, optimizer and
gradient buffers. Where no GPU exists, `device_scope()` answers those calls with the CPU, and only
inside the scope. Where a GPU exists it changes nothing. A call that is not in the tables below
reaches torch itself and fails there with torch's own "no NVIDIA driver" error: an unknown site is
loud, never a guess. docs/reference/core-surface.md lists the sites.

The function mode costs about 1.2 µs for each torch call and is thread-local: helper threads must
not call core. Code of ours that makes many small calls and none of core's leaves it with `plain_torch()`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")

_BLACKWELL = 10
"""Major compute capability."""


def has_gpu() -> bool:
    """Whether this process can use a GPU."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """The device that holds this process's parameters and batches."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else _CPU


def communication_backend() -> str:
    """The torch.distributed backend that fits the device."""
    return "nccl" if has_gpu() else "gloo"


def select_device(local_rank: int) -> None:
    """Binds this process to GPU `local_rank`; does nothing without a GPU."""
    if has_gpu():
        torch.cuda.set_device(local_rank)


def describe_gpus() -> list[str]:
    """One line for each visible GPU: name, memory, compute capability."""
    lines = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        lines.append(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm {capability}")
    return lines


def gpu_generation() -> int | None:
    """The major compute capability of this process's GPU; None without one."""
    return torch.cuda.get_device_capability()[0] if has_gpu() else None


def queue_note(generation: int | None) -> str:
    """What to say where a GPU may start late what ranks send that share layers or rows; mostly empty.

    Before Blackwell kernels start in the order of their launches within one queue of the GPU only. The variable is
    read when the GPU is first used. (Source: core 0.19, `training/arguments.py`, which refuses such a run.)

    Args:
        generation: Of `gpu_generation`.
    """
    queues = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS")
    if generation is None or generation >= _BLACKWELL or queues == "1":
        return ""
    return (
        f"CUDA_DEVICE_MAX_CONNECTIONS: {queues or 'not set'}, and ranks share layers or rows: what they send may start "
        "late. Set it to 1, in the shell or in the site's slurm.environment."
    )


def device_random_state() -> torch.Tensor | None:
    """The state of the GPU's default generator; None without a GPU."""
    return torch.cuda.get_rng_state() if has_gpu() else None


def restore_device_random_state(state: torch.Tensor | None) -> None:
    """Puts back what `device_random_state` returned."""
    if state is not None:
        torch.cuda.set_rng_state(state)


def capture(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """What launches the kernels of `call` again, as one CUDA graph; without a GPU the call itself.

    Args:
        call: Run here without launching anything: it reads and writes the same memory each time, and waits for nothing.

    Returns:
        Gives the tensor that `call` gave, at the same place, with the numbers of now.
    """
    if not has_gpu():
        return call
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a save in the background may use the GPU
        result = call()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


def release_memory() -> None:
    """Gives back what a finished stage held, before the next one of this process begins."""
    gc.collect()
    if has_gpu():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def device_scope() -> Iterator[None]:
    """Runs Megatron-Core on this machine's device; enter it around everything that calls core.

    Scopes nest. On a GPU nothing is changed.
    """
    if has_gpu() or _CpuMode.depth:
        yield
        return
    with cpu_stand_ins(gpu_exists=has_gpu()):
        yield


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Lets torch calls pass the stand-ins by; for code of ours that names no device and calls nothing of core's.

    Decoding a token makes some 400 small calls: with the function mode they took twice as long.
    """
    with torch._C.DisableTorchFunction():
        yield


@contextlib.contextmanager
def no_storage() -> Iterator[None]:
    """Makes new tensors without storage, wherever they are asked for."""
    with torch.device("meta"), _MetaMode():
        yield


class _MetaMode(TorchFunctionMode):
    """Sends torch calls that name a device to `meta`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": torch.device("meta")} if "device" in kwargs else kwargs))


def _names_cuda(value: object) -> bool:
    if isinstance(value, str):
        return value.startswith("cuda")
    return isinstance(value, torch.device) and value.type == "cuda"


class _CpuMode(TorchFunctionMode):
    """Sends torch calls that ask for `cuda` to the CPU."""

    depth = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if "device" in kwargs and _names_cuda(kwargs["device"]):
            kwargs = dict(kwargs, device=_CPU)
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Core sorts parameters by `.type()` strings such as "torch.cuda.FloatTensor".
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **kwargs)


class _NoStream:
    """A stream or event on a device that has none: every operation is already complete."""

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *_exc: object) -> None:
        return None

    def wait_stream(self, _stream: object) -> None:
        """Nothing to wait for."""

    def wait_event(self, _event: object) -> None:
        """Nothing to wait for."""

    def record(self, _stream: object = None) -> None:
        """Nothing to record."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def _nothing(*_args: object, **_kwargs: object) -> None:
    return None


_STAND_INS: dict[str, Any] = {
    "current_device": lambda: _CPU,
    "set_device": _nothing,
    "synchronize": _nothing,
    "empty_cache": _nothing,
    "current_stream": lambda *_args: _NoStream(),
    "stream": lambda _stream: contextlib.nullcontext(),
    "Stream": _NoStream,
    "Event": _NoStream,
    "get_rng_state": lambda *_args, **_kwargs: torch.get_rng_state(),
    "set_rng_state": lambda state, *_args, **_kwargs: torch.set_rng_state(state),
    "manual_seed": lambda seed: torch.manual_seed(seed),
}
"""`torch.cuda` names that core calls, and what they mean on a CPU."""


def _torch_optimizer() -> list[tuple[Any, str, Any]]:
    """What core's optimizer has where no fused extension is installed; with one it takes CUDA kernels, GPU or not.

    The kernels are in the compiled modules of Transformer Engine, which finds its own in several places when it is
    imported, and of apex.
    """
    from megatron.core import optimizer as core_optimizer  # imports the extensions

    if not any(importlib.util.find_spec(compiled) for compiled in ("transformer_engine_torch", "amp_C")):
        return []
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, distrib_optimizer
    from megatron.core.optimizer import optimizer as mixed_precision

    places: list[tuple[Any, str, Any]] = [(core_optimizer, "USING_PYTORCH_OPTIMIZER", True)]
    places += [(core_optimizer, "Adam", torch.optim.AdamW), (distrib_optimizer, "Adam", torch.optim.Adam)]
    places += [
        (distrib_optimizer, name, False) for name in ("HAVE_APEX_OR_TE", "USING_TE_OPTIMIZER", "USING_APEX_OPTIMIZER")
    ]
    for owner in (clip_grads, mixed_precision):
        places.append((owner, "multi_tensor_applier", utils.local_multi_tensor_applier))
        places.append((owner, "multi_tensor_scale_impl", utils.local_multi_tensor_scale))
    places.append((clip_grads, "l2_norm_impl", utils.local_multi_tensor_l2_norm))
    return places


@contextlib.contextmanager
def cpu_stand_ins(*, gpu_exists: bool) -> Iterator[None]:
    """Answers core's `cuda` calls with the CPU; `device_scope` enters it where it belongs.

    Args:
        gpu_exists: Whether this machine has a GPU, which the stand-ins would hide.

    Raises:
        AssertionError: If there is a GPU.
    """
    assert not gpu_exists, "the CPU stand-ins must never be entered where a GPU exists"
    from megatron.core.tensor_parallel import random as core_random

    places: list[tuple[Any, str, Any]] = [(torch.cuda, name, stand_in) for name, stand_in in _STAND_INS.items()]
    places.append((core_random, "_get_cuda_rng_state", lambda *_args, **_kwargs: torch.get_rng_state()))
    places.append((core_random, "_set_cuda_rng_state", lambda state, *_args, **_kwargs: torch.set_rng_state(state)))
    places += _torch_optimizer()
    saved = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, stand_in in places:
        setattr(owner, name, stand_in)
    _CpuMode.depth += 1
    try:
        with _CpuMode():
            yield
    finally:
        _CpuMode.depth -= 1
        for owner, name, original in saved:
            setattr(owner, name, original)
