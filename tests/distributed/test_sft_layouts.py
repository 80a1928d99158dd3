"""An sft step is the same in every layout, however unequal the masks of its rows are.

Of the twelve conversations eight are all prompt but for one token, so with two ranks one has nearly nothing to
train on. The first loss is a float64 sum of fp32 cross entropies of equal weights: 1e-6. Gradients are added up in
another order, and Adam divides by their size: norms, of each kind of layer too, and all losses
behind an update, 1e-5 as in test_isolated_layouts.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_ext.plan.make import make_stage_plan
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.runtime.seed import seed_everything
from megatron_ext.training.parts import make_parts
from megatron_ext.training.step import train_step
from megatron_ext.training.validate import validate
from tests.support.distributed import run_distributed
from tests.support.pencil_project import PencilProject
from tests.support.sft_project import make_sft_project, write_chat

PROMPT, ANSWER = (15, [(14, 15)]), (16, [(1, 16)])
TP2, SP = "parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "dp2": (2, ()),
    "dp3": (3, ()),  # 5 rows a step: the sixth is filled up
    "dp2-distributed-optimizer": (2, ("parallel.use_distributed_optimizer=true",)),
    "tp2": (2, (TP2,)),
    "tp2-sequence-parallel": (2, (TP2, SP)),
    "pp2": (2, (PP2,)),
    "recomputed": (1, ("training.recompute=full",)),
    "recomputed-in-part": (1, ("training.recompute=selective", "training.recompute_modules=[core_attn, mlp]")),
}
ALL = ("training.global_batch_size=5", "logging.norms_interval_steps=1")
KINDS = {
    "token": (),
    "sample": ("sft.loss=sample",),
    "conversations": ("sft.batch_unit=conversations", "sft.loss_switch_tokens=5"),
}


def two_steps(root: Path, keys: tuple[str, ...], world_size: int) -> list[dict[str, Any]]:
    plan = make_stage_plan(PencilProject(root).load(*keys), world_size=world_size)
    layout = plan.layout
    with process_groups(
        Launch.from_environment(),
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
    ) as groups:
        seed_everything(plan.seed)
        parts = make_parts(plan, groups)
        results = [train_step(parts, lr=0.01, step=step) for step in (1, 2)]
        unlike = ("norms", "rank_seconds", "skipped", "loss_kind")
        facts = [
            {name: value for name, value in vars(result).items() if name not in unlike} | result.norms
            for result in results
        ]
        return [*facts, {"validation": validate(parts)}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_sft_project(tmp_path_factory.mktemp("sft"))
    write_chat(project, "c", [PROMPT] * 8 + [ANSWER] * 4)
    return project.root


@pytest.fixture(scope="module")
def alone(root: Path) -> dict[str, list[dict[str, Any]]]:
    return {kind: run_distributed(two_steps, 1, root, (*keys, *ALL), 1)[0] for kind, keys in KINDS.items()}


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        *((layout, "conversations") for layout in LAYOUTS),
        *((layout, "token") for layout in ("dp3", "tp2", "pp2")),
        ("dp2", "sample"),
    ],
)
def test_an_sft_step_is_the_same_in_every_layout(
    root: Path, alone: dict[str, list[dict[str, Any]]], layout: str, kind: str
) -> None:
    world_size, keys = LAYOUTS[layout]
    keys = (*KINDS[kind], *ALL, *keys)
    ranks = run_distributed(two_steps, world_size, root, keys, world_size)
    for found in ranks:
        for number, (here, expected) in enumerate(zip(found, alone[kind], strict=True)):
            assert here.keys() == expected.keys()
            for name, value in expected.items():
                is_exact = number == 0 and "norm" not in name
                assert here[name] == pytest.approx(value, rel=1e-6 if is_exact else 1e-5), name


def test_what_weighs_the_same_decides_the_loss(alone: dict[str, list[dict[str, Any]]]) -> None:
    token, sample = alone["token"][0], alone["sample"][0]
    assert token["trained_tokens"] == sample["trained_tokens"]
    assert abs(token["loss"] - sample["loss"]) > 1e-3
