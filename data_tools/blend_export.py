"""A resolved blend in the forms that other trainers read.

| form           | file                 | read by |
|----------------|----------------------|---------|
| megatron-args  | `megatron_args.txt`  | Megatron-LM: `$(cat megatron_args.txt)`, with `--data-path` weights |
| per-split-json | `per_split.json`     | Megatron-LM: `--per-split-data-args-path`; train, valid and test |
| bridge         | `bridge.json`        | Megatron-Bridge: `blend` or `blend_per_split` of its GPT dataset config |

A weight is the whole number of samples that a dataset gives, so weights sum to `--train-samples` and
lose nothing in print; trainers take them relative to their sum.

Worked size: two shards of 23 and 7 samples beside a source of 10 give
`--data-path 23 a-00000 7 a-00001 10 b --split 100,0,0 --seq-length 16 --train-samples 40`.

Source: megatron-core 0.19.2, core/datasets/utils.py get_blend_from_list (an even list of weight and prefix),
training/utils/common_utils.py get_blend_and_blend_per_split (keys train, valid, test; a list, a string or null).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import orjson

from data_tools.atomic_files import write_atomically
from data_tools.errors import DataError
from data_tools.resolved_blend import ResolvedBlend

Form = Literal["megatron-args", "per-split-json", "bridge"]
FILES: dict[Form, str] = {
    "megatron-args": "megatron_args.txt",
    "per-split-json": "per_split.json",
    "bridge": "bridge.json",
}

Pairs = list[tuple[int, str]]
"""Weight and prefix of each dataset."""


def export(plan: ResolvedBlend, form: Form, folder: Path) -> Path:
    """Writes a plan for another trainer.

    Args:
        plan: Of sources that are all built.
        form: One of `FILES`.
        folder: Where the file goes.

    Returns:
        The file.

    Raises:
        DataError: A source is only declared: there is no dataset to name.
    """
    refuse_declared(plan)
    path = folder / FILES[form]
    write_atomically(path, {"megatron-args": _arguments, "per-split-json": _per_split, "bridge": _bridge}[form](plan))
    return path


def refuse_declared(plan: ResolvedBlend) -> None:
    """Raises DataError where a source is only declared: an export has no dataset to name."""
    if declared := [source.source for source in plan.sources if source.declared]:
        raise DataError(
            f"--export: {', '.join(declared)}: declared, not built, so there is no dataset to name; tokenize it, or "
            "name its folder with --data-root"
        )


def train_pairs(plan: ResolvedBlend) -> Pairs:
    """Weights of all datasets that give a sample."""
    return [(shard.samples, shard.prefix) for source in plan.sources for shard in source.shards if shard.samples]


def valid_pairs(plan: ResolvedBlend) -> Pairs:
    """The same for held-out datasets: each source weighs as much as in training."""
    return [(shard.samples, shard.prefix) for source in plan.sources for shard in source.validation if shard.samples]


def warnings(plan: ResolvedBlend) -> list[str]:
    """What the exported form does not carry."""
    limits = ", ".join(f"{source.source} {source.epochs:.3g} of {source.max_epochs:g}" for source in plan.sources)
    missing = [source.source for source in plan.sources if not source.validation]
    said = [
        "stock Megatron does not enforce max_epochs: it repeats a source silently when more samples are asked for. "
        f"Train {plan.samples:,} samples of {plan.sequence_length:,} tokens and no more; passes then: {limits}",
        "stock Megatron shuffles anew when the blend, its size or the seed changes, and then reads documents again "
        "that it has read",
    ]
    return said + ([f"no held-out dataset is built for {', '.join(missing)}"] if missing else [])


def _flat(pairs: Pairs) -> list[str]:
    return [part for weight, prefix in pairs for part in (str(weight), prefix)]


def _arguments(plan: ResolvedBlend) -> bytes:
    blend = " ".join(map(shlex.quote, _flat(train_pairs(plan))))
    return (
        f"--data-path {blend}\n--split 100,0,0\n--seq-length {plan.sequence_length}\n--train-samples {plan.samples}\n"
    ).encode()


def _per_split(plan: ResolvedBlend) -> bytes:
    valid = _flat(valid_pairs(plan))
    return _json({"train": _flat(train_pairs(plan)), "valid": valid or None, "test": None})


def _bridge(plan: ResolvedBlend) -> bytes:
    train, valid = _columns(train_pairs(plan)), _columns(valid_pairs(plan))
    return _json(
        {
            "blend": train,
            "blend_per_split": [train, valid, None],
            "seq_length": plan.sequence_length,
            "train_samples": plan.samples,
        }
    )


def _columns(pairs: Pairs) -> list[Sequence[object]] | None:
    return [[prefix for _, prefix in pairs], [weight for weight, _ in pairs]] if pairs else None


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
