"""An RL step is the same in every layout, however unequal its responses are; so are log-probabilities and entropies.

fp32. A log-probability near -7 is one of numbers 4.8e-7 apart, and a ratio carries its error: 3e-6 for what is made of
few of them, 1e-6 for the loss, a mean of many. Gradients are added up in another order and Adam divides by their size,
so norms, and all that is behind an update, 1e-5 as in test_sft_layouts.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.datasets.batch import Batch, rows_of_rank
from megatron_ext.datasets.rollout_batch import RolloutBatch
from megatron_ext.objectives.rl import RlOptions
from megatron_ext.objectives.rl_objective import RlObjective
from megatron_ext.objectives.token_log_probs import TokenScores, log_probs_and_entropy
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.runtime.seed import seed_everything
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.step import train_step
from tests.support.distributed import run_distributed
from tests.support.one_process import strengthen
from tests.support.pencil_project import PencilProject, make_pencil_project
from tests.support.rollouts import make_responses, pack

LENGTH = 16
LENGTHS = (13, 1, 2, 9, 3, 1, 5, 7, 4)
ROWS = ((0,), (1, 2, 4, 5), (3,), (6, 8), (7,), (1,), (2,), (0,))
OPTIONS = RlOptions(max_new_tokens=13, kl_coefficient=0.1, importance_cap=1.1, temperature=0.7)
TP2, SP = "parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "dp2": (2, ()),
    "dp2-distributed-optimizer": (2, ("parallel.use_distributed_optimizer=true",)),
    "tp2": (2, (TP2,)),
    "tp2-sequence-parallel": (2, (TP2, SP)),
    "pp2": (2, ("parallel.pipeline_model_parallel_size=2",)),
}


class FixedRows:
    """Gives one rank its rows of the same step again and again."""

    consumed_samples = consumed_tokens = 0

    def __init__(self, rows: Sequence[Batch], *, rank: int, size: int) -> None:
        places = rows_of_rank(
            num_microbatches=len(rows) // size, micro_batch_size=1, data_parallel_rank=rank, data_parallel_size=size
        )
        self._rows = [rows[place] for (place,) in places]

    def next_step(self) -> Sequence[Batch]:
        return self._rows


def rows_of_step() -> list[RolloutBatch]:
    """Eight rows, from one long response to four short ones; the other policies are somewhat off uniform."""
    generator = torch.Generator().manual_seed(1)
    responses = make_responses(LENGTHS)
    names = ("old", "sampled", "reference")
    near = {name: getattr(responses, name) - responses.policy - math.log(1024) for name in names}
    rows = []
    for number, numbers in enumerate(ROWS):
        row = pack(replace(responses, **near), numbers, row_length=LENGTH, options=OPTIONS)
        ids = torch.randint(0, 99, (2, 1, LENGTH), generator=generator)
        rows.append(replace(row, tokens=ids[0], labels=ids[1], sample_ids=(f"row:{number}",)))
    return rows


def parts_of(root: Path, keys: tuple[str, ...], world_size: int, groups: Any) -> Parts:
    plan = make_stage_plan(PencilProject(root).load(*keys, "training.global_batch_size=8"), world_size=world_size)
    seed_everything(plan.seed)
    parts = make_parts(plan, groups)
    strengthen(parts.model.module, 4.0)  # or all distributions are flat
    parts.optimizer.reload_model_params()
    rows = FixedRows(rows_of_step(), rank=groups.dp.rank(), size=groups.dp.size())
    objective = RlObjective(2, options=OPTIONS, tp_group=groups.tp)
    return replace(parts, objective=objective, cursor=rows)  # type: ignore[arg-type]


def two_steps(root: Path, keys: tuple[str, ...], world_size: int) -> list[dict[str, Any]]:
    layout = make_stage_plan(PencilProject(root).load(*keys), world_size=world_size).layout
    with process_groups(
        Launch.from_environment(),
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
    ) as groups:
        parts = parts_of(root, keys, world_size, groups)
        results = [train_step(parts, lr=0.01, step=step) for step in (1, 2)]
        names = ("loss", "trained_tokens", "grad_norm", "objective")
        return [{name: getattr(result, name) for name in names} for result in results]


def scores(root: Path, keys: tuple[str, ...], world_size: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of one row by its logits, and log-probabilities by `TokenScores`."""
    with process_groups(Launch.from_environment(), tensor_model_parallel_size=world_size) as groups:
        parts = parts_of(root, keys, world_size, groups)
        row = rows_of_step()[1]
        with torch.no_grad():
            logits = parts.objective.run_model(parts.model, row, labels=None)
            by_hand = log_probs_and_entropy(logits, row.labels, temperature=0.7, tp_group=groups.tp)
            output, report = TokenScores(temperature=0.7, tp_group=groups.tp).forward_step(iter([row]), parts.model)
            scored = report(output)[2]
        assert logits.shape[-1] == parts.plan.model_size.padded_vocab_size // world_size
        torch.testing.assert_close(scored, by_hand[0], rtol=0, atol=0)
        return by_hand


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pencil_project(tmp_path_factory.mktemp("rl")).root


@pytest.fixture(scope="module")
def alone(root: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run_distributed(two_steps, 1, root, (), 1)[0]
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_rl_step_is_the_same_in_every_layout(root: Path, alone: list[dict[str, Any]], layout: str) -> None:
    world_size, keys = LAYOUTS[layout]
    for found in run_distributed(two_steps, world_size, root, keys, world_size):
        for step, (here, expected) in enumerate(zip(found, alone, strict=True)):
            assert here["loss"] == pytest.approx(expected["loss"], rel=1e-6 if step == 0 else 1e-5)
            assert here["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
            assert here["trained_tokens"] == expected["trained_tokens"]
            assert here["objective"] == pytest.approx(expected["objective"], rel=3e-6 if step == 0 else 1e-5)


def test_the_step_meets_every_clip_and_cap(alone: list[dict[str, Any]]) -> None:
    first, second = (step["objective"] for step in alone)
    for name in ("clip_low_fraction", "clip_high_fraction", "importance_truncated_fraction", "kl_reference"):
        assert first[name] > 0, name
    assert first["entropy"] != second["entropy"]
    assert alone[0]["trained_tokens"] == sum(LENGTHS[number] for row in ROWS for number in row)


def test_parts_of_the_vocabulary_give_the_log_probabilities_and_entropies_of_the_whole(root: Path) -> None:
    whole = run_distributed(scores, 1, root, (), 1)[0]
    for part in run_distributed(scores, 2, root, (TP2,), 2):
        for here, expected in zip(part, whole, strict=True):
            assert expected.std() > 0.01
            torch.testing.assert_close(here, expected, rtol=0, atol=2e-6)
