"""Samples from core's stock layers through their twin, on stand-ins for what they need; run as a program.

    python -m tests.support.te_sampling REPORT.json             logits, and what layouts sample
    python -m tests.support.te_sampling REPORT.json stages      rl stages

A process of its own, because core decides at import whether Transformer Engine is there.
"""

from __future__ import annotations

import tests.support.stand_ins_installed  # noqa: F401

# isort: split

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.models.build import build_model
from megatron_ext.rollout.twin import decodable
from tests.support import distributed
from tests.support.layout_rollouts import sample
from tests.support.one_process import logits_of, one_process, random_tokens, strengthen
from tests.support.plans import make_plan
from tests.support.rl_project import add_rl
from tests.support.rollout import cached_logits
from tests.support.toy_project import make_toy_project

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"hybrid_layer_pattern": "M-*M*"},
    "tied": {"share_embeddings_and_output_weights": True},
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "tp2": (2, {"tensor_model_parallel_size": 2}),
    "tp2 sp": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "dp2": (2, {"data_parallel_size": 2}),
}
STAGES: dict[str, tuple[int, tuple[str, ...]]] = {
    "fp32": (1, ()),
    "bf16": (1, ("precision=bf16",)),
    "tp2, sharded": (2, ("parallel.tensor_model_parallel_size=2", "parallel.use_distributed_optimizer=true")),
}


def twin_facts(groups: ProcessGroupCollection, shape: str) -> dict[str, Any]:
    """How far cached logits of the twin are from the whole text's, before and after the weights change and move."""
    plan = make_plan(model=SHAPES[shape])
    model = strengthen(build_model(plan, groups, backend="te"))
    twin = decodable(model, plan)
    tokens = random_tokens(1, 20)
    facts: dict[str, Any] = {"distances": [], "logits": []}
    for _ in range(2):
        whole = logits_of(model, tokens)[0, 11:]
        cached = cached_logits(twin, plan, tokens[0].tolist(), prompt=12)
        facts["distances"].append(float((whole - cached).abs().max()))
        facts["logits"].append(whole.flatten().tolist()[:8])
        with torch.no_grad():
            for parameter in model.parameters():  # as the distributed optimizer moves them into its buffers
                parameter.data = parameter.data.clone().mul_(1.1)
    theirs = {id(parameter) for parameter in model.parameters()}
    facts["same objects"] = {id(parameter) for parameter in twin.parameters()} == theirs
    return facts


def stage_facts(root: Path) -> dict[str, Any]:
    """Metrics and output of an rl stage in each layout, behind one pretrained model."""
    project = make_toy_project(root)
    recipe = add_rl(project)
    te, base = "training.backend=te", root / "base"
    pretrained = project.run(base, te)
    assert pretrained.code == 0, pretrained.output
    facts = {}
    for name, (size, keys) in STAGES.items():
        run_root = root / f"{size}-{len(facts)}"
        shutil.copytree(base, run_root)
        run = project.run(run_root, te, *keys, recipe=recipe, processes=None if size == 1 else size)
        facts[name] = {"code": run.code, "output": run.output, "metrics": run.metrics if run.code == 0 else []}
    return facts


def layout_facts() -> dict[str, Any]:
    """Ids of each layout's completions, by prompt and sample; of tensor-parallel ranks those of the first."""
    facts = {}
    for name, (size, layout) in LAYOUTS.items():
        ranks = distributed.run_distributed(sample, size, layout | {"backend": "te"}, {})
        apart = ranks if "data_parallel_size" in layout else ranks[:1]
        found = [completion for completions, _, _ in apart for completion in completions]
        found.sort(key=lambda completion: (completion.prompt_index, completion.sample_index))
        facts[name] = [completion.token_ids for completion in found]
    return facts


def main() -> None:
    distributed._PRELOADED.insert(0, "tests.support.stand_ins_installed")
    facts: dict[str, Any] = {}
    if "stages" in sys.argv[2:]:
        with TemporaryDirectory() as folder:
            facts = stage_facts(Path(folder))
    else:
        with one_process() as groups:
            facts["twin"] = {shape: twin_facts(groups, shape) for shape in SHAPES}
        facts["layouts"] = layout_facts()
    Path(sys.argv[1]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
