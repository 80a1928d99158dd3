"""Layouts of the toy recipe that the GPU check trains over several GPUs; one of each backend is resumed by one GPU.

layouts(8)["tp2-sp"]        (2, ("training.backend=local", …))
"""

from __future__ import annotations

TP2 = ("parallel.tensor_model_parallel_size=2",)
SP = (*TP2, "parallel.sequence_parallel=true")
PP2 = ("parallel.pipeline_model_parallel_size=2", "training.micro_batch_size=2")
SHARDED = ("parallel.use_distributed_optimizer=true",)
OVERLAPPED = (*SHARDED, "parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
CP2 = ("parallel.context_parallel_size=2",)
TE = ("training.backend=te", "precision=bf16")
LOCAL = ("training.backend=local", "precision=fp32")
SMALL = ("training.micro_batch_size=1",)


def layouts(gpus: int) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Processes and keys of every layout that `gpus` GPUs can hold, by name."""
    every: dict[str, tuple[int, tuple[str, ...]]] = {}
    for backend, keys in {"local": LOCAL, "te": TE}.items():
        every |= {
            f"{backend} dp2 overlapped": (2, (*keys, *OVERLAPPED, *SMALL)),
            f"{backend} tp2 sp": (2, (*keys, *SP)),
            f"{backend} pp2": (2, (*keys, *PP2)),
            f"{backend} tp2 sp pp2": (4, (*keys, *SP, *PP2)),
            f"{backend} tp2 sp dp2 sharded": (4, (*keys, *SP, *SHARDED, *SMALL)),
            f"{backend} tp2 sp pp2 dp2": (8, (*keys, *SP, *PP2, *SHARDED)),
            f"{backend} dp8 overlapped": (8, (*keys, *OVERLAPPED, *SMALL)),
        }
    every |= {
        "te cp2": (2, (*TE, *CP2)),
        "te tp2 sp cp2 dp2": (8, (*TE, *SP, *CP2, *SMALL)),
        "te tp2 sp, sent while multiplied": (2, (*TE, *SP, "parallel.tp_comm_overlap=true")),
    }
    return {name: layout for name, layout in every.items() if layout[0] <= gpus}


def resumed(gpus: int) -> list[str]:
    """Of each backend the layout whose checkpoint one GPU goes on with: the one that cuts weights and states the most.

    >>> resumed(1), resumed(2), resumed(8)
    ([], ['local tp2 sp', 'te tp2 sp'], ['local tp2 sp pp2 dp2', 'te tp2 sp pp2 dp2'])
    """
    held = layouts(gpus)
    cuts = next((cut for cut in ("tp2 sp pp2 dp2", "tp2 sp pp2", "tp2 sp") if f"local {cut}" in held), None)
    return [] if cuts is None else [f"{backend} {cuts}" for backend in ("local", "te")]
