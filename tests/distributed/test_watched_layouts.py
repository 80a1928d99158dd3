"""What is looked at on demand is right in every layout: norms by kind of layer, rank times, skipped updates.

Tolerance 1e-5 relative on norms, in fp32: layouts add the same numbers in another order.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from megatron_ext.convert.torch_dist import TorchDistWeights
from megatron_ext.datasets.batch import Batch
from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import Waits, process_groups
from megatron_ext.training.file_list import checkpoints_of
from megatron_ext.training.parts import gather_weights, make_parts
from megatron_ext.training.saving import Saver
from megatron_ext.training.state import StepResult, TrainState
from megatron_ext.training.step import train_step
from megatron_ext.training.validate import validate
from tests.support.distributed import run_distributed
from tests.support.sources import plan_reading, write_source, write_tokenizer
from tests.support.toy_project import Run, ToyProject

TP2 = "parallel.tensor_model_parallel_size=2"
LAYOUTS = {
    "tp2-sequence-parallel": (TP2, "parallel.sequence_parallel=true"),
    "pp2-tied": ("parallel.pipeline_model_parallel_size=2", "model.share_embeddings_and_output_weights=true"),
    "dp2-distributed-optimizer": ("parallel.use_distributed_optimizer=true",),
}
WATCH = ("training.max_steps=4", "logging.norms_interval_steps=2", "profile.steps=2-3")
KINDS = {"embedding", "mamba", "attention", "mlp", "final_norm", "output"}


@pytest.fixture(scope="module")
def single(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = toy_project.run(tmp_path_factory.mktemp("single"), *WATCH)
    assert run.code == 0, run.output
    return run


@pytest.fixture(scope="module")
def single_tied(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = toy_project.run(tmp_path_factory.mktemp("tied"), *WATCH, "model.share_embeddings_and_output_weights=true")
    assert run.code == 0, run.output
    return run


def test_norms_come_in_the_steps_asked_and_sum_to_the_gradient_norm(single: Run) -> None:
    assert ["grad_norm_by_kind" in line for line in single.metrics] == [False, True, False, True]
    for line in single.metrics[1::2]:
        assert line["grad_norm_by_kind"].keys() == line["weight_norm_by_kind"].keys() == KINDS
        assert math.hypot(*line["grad_norm_by_kind"].values()) == pytest.approx(line["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_norms_by_kind_do_not_depend_on_the_layout(
    toy_project: ToyProject, single: Run, single_tied: Run, tmp_path: Path, name: str
) -> None:
    run = toy_project.run(tmp_path, *WATCH, *LAYOUTS[name], processes=2)
    assert run.code == 0, run.output
    expected = single_tied if "tied" in name else single
    for line, alone in zip(run.metrics[1::2], expected.metrics[1::2], strict=True):
        for field in ("grad_norm_by_kind", "weight_norm_by_kind"):
            assert line[field] == pytest.approx(alone[field], rel=1e-5)
    traces = {path.name for path in (run.stage_folder / "profile").iterdir()}
    first_replica = {"rank_0.json.gz"} if "dp2" in name else {"rank_0.json.gz", "rank_1.json.gz"}
    assert traces == first_replica, "one replica of the model is traced, all its ranks"


def test_a_trace_holds_the_steps_asked_and_the_run_says_where(single: Run) -> None:
    file = single.stage_folder / "profile" / "rank_0.json.gz"
    names = [event.get("name") for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]]
    assert sorted(name for name in set(names) if str(name).startswith("step ")) == ["step 2", "step 3"]
    assert {"read", "forward and backward"} <= set(names)
    assert file.stat().st_size < 10 * 2**20
    assert f"in {file.parent}: open it in https://ui.perfetto.dev" in single.output


class SlowCursor(BlendedCursor):
    """A source that takes long to answer."""

    def next_step(self) -> tuple[Batch, ...]:
        """The same rows, a second later."""
        time.sleep(1.0)
        return super().next_step()


def train_with_one_slow_reader_and_one_infinite_gradient(plan: StagePlan) -> tuple[Sequence[StepResult], bool]:
    """Two ranks: rank 1 reads slowly, and its gradient is infinite in step 2. Were the weights of step 1 kept?"""
    with process_groups(Launch.from_environment()) as groups:
        parts = make_parts(plan, groups)
        if groups.dp.rank() == 1:
            parts = dataclasses.replace(parts, cursor=SlowCursor(plan, data_parallel_rank=1, data_parallel_size=2))
        results = [train_step(parts, lr=1e-3, step=1)]
        before = [parameter.detach().clone() for parameter in parts.model.parameters()]
        out = dict(parts.model.module.named_parameters())["output_layer.weight"]
        factor = float("inf") if groups.dp.rank() == 1 else 1.0
        handle = out.register_hook(lambda gradient: gradient * factor)
        results.append(train_step(parts, lr=1e-3, step=2, may_skip=True))
        handle.remove()
        is_kept = all(map(torch.equal, before, parts.model.parameters()))
        results.append(train_step(parts, lr=1e-3, step=3))
        return results, is_kept


@pytest.mark.parametrize("distributed_optimizer", [False, True])
def test_ranks_agree_on_a_skipped_update_and_on_who_is_slow(tmp_path: Path, distributed_optimizer: bool) -> None:
    write_source(tmp_path / "toy", [[1, 2, 3, 4, 5, 6, 7, 0]] * 9)
    plan = plan_reading(
        {"toy": (tmp_path / "toy", 16)},
        global_batch_size=4,
        micro_batch_size=2,
        layout={"data_parallel_size": 2, "use_distributed_optimizer": distributed_optimizer},
        logging={"rank_times": True},
    )
    (mine, is_kept), (other, is_kept_there) = run_distributed(
        train_with_one_slow_reader_and_one_infinite_gradient, 2, plan
    )
    assert is_kept
    assert is_kept_there
    assert [result.skipped for result in mine] == [result.skipped for result in other]
    assert [result.skipped is None for result in mine] == [True, False, True]
    skipped = str(mine[1].skipped)
    assert skipped.startswith("step 2: gradient norm is ")
    assert "the weights are those of step 1" in skipped
    listed, documents = skipped.split("  documents\n")
    assert listed.count("toy:0:") == documents.count("toy:0:") == 4
    assert [(result.samples, result.trained_tokens) for result in mine] == [(4, 16), (4, 0), (4, 16)]
    assert math.isfinite(mine[2].loss)
    fast, slow = zip(*(result.rank_seconds for result in mine), strict=True)
    assert min(slow) > 1.0
    assert min(fast) < 0.5, "waiting a second for the slow reader is no time of the fast one"


OVERLAPPED = {"data_parallel_size": 2} | dict.fromkeys(
    ("use_distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather"), True
)


def _held_out_losses(folder: Path) -> tuple[float, float]:
    """Behind an update, as if every layer stood behind a CUDA graph; and once the weights are surely whole."""
    plan = plan_reading({"toy": (folder / "toy", 8)}, global_batch_size=4, micro_batch_size=2, layout=OVERLAPPED)
    with process_groups(Launch.from_environment()) as groups:
        parts = make_parts(plan, groups)
        train_step(parts, lr=0.1, step=1)
        parts.model.disable_forward_pre_hook(param_sync=False)  # what core does not call for a graphed layer
        (first,) = validate(parts).values()
        gather_weights(parts.model)
        (second,) = validate(parts).values()
    return first, second


def _saved_and_whole(folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The first and the last weight as they are saved behind an update, and once core has gathered them."""
    plan = plan_reading(
        {"toy": (folder / "toy", 8)},
        global_batch_size=4,
        micro_batch_size=2,
        layout=OVERLAPPED,
        tokenizer=folder / "tokenizer",
    )
    with process_groups(Launch.from_environment()) as groups:
        parts = make_parts(plan, groups)
        assert (parts.model.ddp_config.overlap_grad_reduce, parts.model.ddp_config.overlap_param_gather) == (True, True)
        train_step(parts, lr=0.1, step=1)
        with Saver(parts, folder / "checkpoints", say=lambda _: None, waits=Waits()) as saver:
            saver.after_step(TrainState(step=1), is_last=True)
        parts.model.start_param_sync(force_sync=True)
        whole = dict(parts.model.module.named_parameters())
        (checkpoint,) = checkpoints_of(folder / "checkpoints")
        saved = TorchDistWeights(checkpoint)
        names = ("embedding.word_embeddings.weight", "output_layer.weight")
        return [(saved.read(name), whole[name].detach().clone()) for name in names]


def test_weights_that_no_forward_pass_has_gathered_are_saved_whole(tmp_path: Path) -> None:
    write_source(tmp_path / "toy", [[1, 2, 3, 4, 5, 6, 7, 0]] * 9)
    write_tokenizer(tmp_path / "tokenizer")
    for of_rank in run_distributed(_saved_and_whole, 2, tmp_path):
        assert all(torch.equal(saved, whole) for saved, whole in of_rank)


def test_a_validation_reads_whole_weights_where_no_hook_of_a_layer_gathers_them(tmp_path: Path) -> None:
    write_source(tmp_path / "toy", [[1, 2, 3, 4, 5, 6, 7, 0]] * 9)
    for first, second in run_distributed(_held_out_losses, 2, tmp_path):
        assert first == second
