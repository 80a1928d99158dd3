"""Runs recipes with context parallelism on core's stock layers, and stand-ins for what they need; run as a program.

    python -m tests.support.context_runs REPORT.json one cp2 tp2-cp2 gradients resumed isolation

In each layout a pretraining stage and sft stages run whole: data, isolation proof, steps, validation, checkpoints,
ledger. The sft stages begin with the weights that one process has pretrained.
A process of its own, because core decides at import whether Transformer Engine is there.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support import distributed
from tests.support.pencil_project import PencilProject
from tests.support.sft_project import make_sft_project
from tests.support.toy_project import Run

CP2, TP2 = "parallel.context_parallel_size=2", "parallel.tensor_model_parallel_size=2"
SP, SHARDED = "parallel.sequence_parallel=true", "parallel.use_distributed_optimizer=true"
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "one": (1, ()),
    "local": (1, ("training.backend=local",)),
    "cp2": (2, (CP2,)),
    "cp2-sharded": (2, (CP2, SHARDED)),
    "cp2-dp2": (4, (CP2,)),
    "tp2-cp2": (4, (TP2, CP2)),
    "tp2-sequence-parallel-cp2": (4, (TP2, SP, CP2)),
    "pp2-cp2": (4, (CP2, "parallel.pipeline_model_parallel_size=2")),
}
"""Processes and the keys that place them."""

COMMON = (
    "training.sequence_length=32",
    "training.validation_tokens=64",
    "training.backend=te",
    "logging.tensorboard=false",
    "logging.norms_interval_steps=1",
    "model.mamba_num_heads=8",
)
STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "pretrain": ("base.yaml", ("checkpoint.interval_tokens=256",)),
    "sft": ("pretrain.yaml", ("sft.pad_multiple=4",)),
    "sft-sample-by-conversation": (
        "pretrain.yaml",
        ("sft.pad_multiple=4", "sft.loss=sample", "sft.batch_unit=conversations", "training.global_batch_size=3"),
    ),
}
"""Recipe and keys of each; the last weighs every conversation the same, in steps of three, of one row or more."""


def keys_of(stage: str, layout: str, run_root: Path) -> list[str]:
    parent = [f"init_from={path.name}" for path in (run_root / "stages").glob("pretrain-*") if stage != "pretrain"]
    return [*COMMON, *STAGES[stage][1], *LAYOUTS[layout][1], *parent]


def run_stage(project: PencilProject, stage: str, layout: str, run_root: Path, *more: str) -> Run:
    """A run of all ranks from its beginning, or on from where it was stopped."""
    arguments = [str(project.root / STAGES[stage][0]), "--site", str(project.site), "--run-root", str(run_root)]
    for key in [*keys_of(stage, layout, run_root), *more]:
        arguments += ["--set", key]
    code, output = distributed.run_recipe(arguments, cwd=project.root, processes=LAYOUTS[layout][0], timeout_s=120)
    assert code == 0, output
    return Run(code, output, run_root)


def gradients(recipe: Path, site: Path, run_root: Path, keys: list[str], size: int) -> dict[str, Any]:
    """Loss and gradients of the first step's microbatches, before the optimizer sees them."""
    from megatron_ext.plan.make import make_stage_plan
    from megatron_ext.recipe.load import load_recipe
    from megatron_ext.runtime.launch import Launch
    from megatron_ext.runtime.parallel import process_groups
    from megatron_ext.training.parts import make_parts
    from megatron_ext.training.step import run_microbatches
    from tests.support.one_process import strengthen

    loaded = load_recipe(recipe, overrides=keys, site=site)
    plan = make_stage_plan(loaded, world_size=size, run_root=run_root)
    with process_groups(Launch.from_environment(), context_parallel_size=size) as groups:
        parts = make_parts(plan, groups)
        strengthen(parts.model.module, 4.0)
        parts.model.zero_grad_buffer()
        report = run_microbatches(parts, parts.cursor.next_step(), forward_only=False)
        found = {name: parameter.main_grad.clone() for name, parameter in parts.model.named_parameters()}
        return {"report": report, "gradients": found}


def isolation_holds(damage: str) -> bool:
    """Whether the proof passes on two ranks that share a row, of which something on the way tells the layers else."""
    from megatron_ext.models.build import build_model
    from megatron_ext.runtime.launch import Launch
    from megatron_ext.runtime.parallel import process_groups
    from megatron_ext.training.isolation import measure_isolation
    from tests.support.plans import make_plan

    def spoil(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        packed = copy(kwargs.get("packed_seq_params"))
        if packed is None:
            return (args[0].flip(1), *args[1:]) if damage == "a row cut otherwise" else args, kwargs
        if damage == "a document too few":
            packed.cu_seqlens_q = packed.cu_seqlens_kv = packed.cu_seqlens_q[[0, *range(2, len(packed.cu_seqlens_q))]]
            packed.max_seqlen_q = int((packed.cu_seqlens_q[1:] - packed.cu_seqlens_q[:-1]).max())
        if damage == "the index of a rank's part":
            packed.seq_idx = packed.seq_idx.roll(4, dims=1)
        return args, kwargs | {"packed_seq_params": packed}

    plan = make_plan(layout={"context_parallel_size": 2, "world_size": 2, "backend": "te"})
    with process_groups(Launch.from_environment(), context_parallel_size=2) as groups:
        model = build_model(plan, groups)
        model.register_forward_pre_hook(spoil, with_kwargs=True)
        return measure_isolation(model, plan, groups).holds


def gradient_difference(project: PencilProject, stage: str, run_root: Path) -> dict[str, float]:
    """CP 2 against one rank: the largest difference of any gradient relative to that gradient's largest value."""
    found = []
    for layout, size in (("one", 1), ("cp2", 2)):
        arguments = (project.root / STAGES[stage][0], project.site, run_root, keys_of(stage, layout, run_root))
        ranks = distributed.run_distributed(gradients, size, *arguments, size)
        found += ranks
    one, *shared = found
    return {
        "report": max(float(((rank["report"] - one["report"]).abs() / one["report"].abs()).max()) for rank in shared),
        "gradients": max(
            float((rank["gradients"][name] - wanted).abs().max() / wanted.abs().max())
            for rank in shared
            for name, wanted in one["gradients"].items()
        ),
    }


def runs(project: PencilProject, base: Path, layout: str) -> dict[str, Any]:
    """What each stage says of itself."""
    found = {}
    for stage in STAGES:
        run_root = project.root / layout / stage
        if stage != "pretrain":
            shutil.copytree(base, run_root)
        run = run_stage(project, stage, layout, run_root)
        ledger = json.loads((run.stage_folder / "stage.json").read_text())["ledger"]
        found[stage] = {"metrics": run.metrics, "ledger": ledger, "output": run.output, "id": run.stage_folder.name}
    return found


def resumed(project: PencilProject, base: Path) -> dict[str, list[float]]:
    """The losses of a pretraining stage that one layout begins and another one ends."""
    found = {}
    for first, then in (("one", "cp2"), ("cp2", "one")):
        run_root = project.root / "resumed" / first
        run_stage(project, "pretrain", first, run_root, "training.max_steps=2")
        found[f"{first} to {then}"] = run_stage(project, "pretrain", then, run_root).losses
    return found


MEASURED: dict[str, Callable[[PencilProject, Path], dict[str, Any]]] = {
    "gradients": lambda project, base: {
        stage: gradient_difference(project, stage, base) for stage in ("pretrain", "sft")
    },
    "resumed": resumed,
    "isolation": lambda project, base: {
        damage: distributed.run_distributed(isolation_holds, 2, damage)
        for damage in ("none", "a document too few", "the index of a rank's part", "a row cut otherwise")
    },
}


def main() -> None:
    distributed._PRELOADED.insert(0, "tests.support.stand_ins_installed")
    facts: dict[str, Any] = {}
    with TemporaryDirectory() as name:
        root = Path(name)
        project = make_sft_project(root)
        base = root / "base"
        run_stage(project, "pretrain", "one", base)
        for wanted in sys.argv[2:]:
            facts[wanted] = MEASURED[wanted](project, base) if wanted in MEASURED else runs(project, base, wanted)
    Path(sys.argv[1]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
