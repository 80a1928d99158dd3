"""A plan is printed with every number that decides it, and is not cut in a pipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.manifest import read_manifest, write_manifest
from megatron_ext.plan.cost import GpuTime
from megatron_ext.plan.render import print_plan
from megatron_ext.plan.render_data import chain_rows
from tests.support.pencil_project import PencilProject
from tests.support.plans import make_plan


def printed(project: PencilProject, capsys: pytest.CaptureFixture[str], *overrides: str, world_size: int = 1) -> str:
    print_plan(project.plan(*overrides, world_size=world_size), run_root=Path("runs"))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    return "\n".join(line for line in lines if not line.startswith("──"))


def test_a_plan_says_what_will_happen(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    identity = project.plan().stage_id
    assert printed(project, capsys).splitlines() == [
        f"{identity} pretrain.yaml",
        "model pencil, 267,464 parameters",
        "embedding 65,536, mamba 91,080, attention 12,352, mlp 32,896, final_norm 64, output 65,536",
        "vocabulary 100, padded to 1,024",
        "layout 1 process = tensor 1 x pipeline 1 x data 1, backend auto, fp32",
        "layers M-M*M-",
        "tokens 640 = 40 samples x 16 tokens",
        "steps 10 = 40 samples / 4 a step (64 tokens)",
        "microbatches 4 a step on each rank, of 1 sample",
        "learning rate 0.003 down to 0.0003, wsd: 2 steps of warmup, 4 stable, 4 of linear decay",
        "validation every 5 steps, up to 3 samples of each source",
        "checkpoints every 5 steps; the last 2 are kept",
        "FLOPs 1.329e+06 a token = 4.97 x parameters; 8.503e+07 a step, 8.503e+08 in all",
        "projection 59.9 %, ssd 9.02 %, convolution 1.04 %, attention 0.462 %, output 29.6 %",
        "memory 4.76 MB on the fullest rank, temporary buffers on top",
        "parameters 1.07 MB, gradients 1.07 MB, optimizer 2.14 MB, activations 407 KB, logits 73.9 KB",
        "activations as backend local keeps them on a CPU; with --gpu auto is counted as te",
        "disk 6.42 MB = 2 checkpoints x 3.21 MB (weights 1.07 MB), one more while it is written",
        "a save the busiest rank writes 3.21 MB",
        "tokenizer data/tokenizer, 100 ids",
        f"written to runs/stages/{identity}",
        "",
        "source share samples tokens of its documents epochs at most dataset",
        "a 75 % 30 480 1,000 100 0.48 1 data/a",
        "b 25 % 10 160 400 40 0.4 1 data/b",
    ]


def test_the_domains_of_sources_that_mix_them_are_said_and_how_they_are_known(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    project.edit("a.yaml", "domain: math", "domain: math\ndomain_shares: {math: 0.75, code: 0.25}")
    write_manifest("data/b", replace(read_manifest("data/b"), tokens_by_domain={"math": 50, "science": 350}))
    text = printed(project, capsys)
    assert "\ndomains a: code 25 %, math 75 % of its tokens, declared\n" in text
    assert "\nb: math 12.5 %, science 87.5 % of its tokens, counted over the whole source\n" in text


def test_the_layout_shows_the_cuts_and_the_ranks(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(project, capsys, "parallel.pipeline_model_parallel_size=2", world_size=4)
    assert "layout 4 processes = tensor 1 x pipeline 2 x data 2, backend auto, fp32\nlayers M-M|*M-\n" in text
    assert "microbatches 2 a step on each rank" in text


def test_a_tied_output_layer_is_said(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(project, capsys, "model.share_embeddings_and_output_weights=true")
    assert "final_norm 64, output tied to the embedding\n" in text


def test_a_cut_for_trials_is_said(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert "\ncut after step 3 (training.max_steps): a trial, not the stage\n" in printed(
        project, capsys, "training.max_steps=3"
    )


def test_a_schedule_without_a_stable_part_says_its_shape(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(project, capsys, "schedule={style: cosine, decay_tokens: null}")
    assert "\nlearning rate 0.003 down to 0.0003, cosine: 2 steps of warmup, 8 of cosine\n" in text


def test_steps_of_the_schedule_are_rounded_and_one_is_a_step(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ": 1 step of warmup, 5 stable, 4 of" in printed(project, capsys, "schedule.warmup_tokens=64")
    assert ": 1.25 steps of warmup, 4.75 stable," in printed(project, capsys, "schedule.warmup_tokens=80")
    thirds = ("training.global_batch_size=3", "budget.tokens=480", "schedule={warmup_tokens: 64, decay_tokens: 64}")
    assert ": 1.33 steps of warmup, 7.33 stable, 1.33 of" in printed(project, capsys, *thirds)


def test_roundings_are_printed_as_sentences(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(project, capsys, "budget.tokens=700")
    assert text.endswith("rounded budget.tokens 700 is 10.94 steps of 64 tokens: rounded to 11 steps, 704 tokens.")


def test_a_wide_table_is_not_cut_in_a_pipe(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    deep = "deep/" * 60
    (project.root / "data" / deep).mkdir(parents=True)
    for file in (project.root / "data").glob("a.*"):
        file.rename(project.root / "data" / deep / file.name)
    project.edit("a.yaml", "prefix: a\nvalidation_prefix: a.", f"prefix: {deep}a\nvalidation_prefix: {deep}a.")
    print_plan(project.plan(), run_root=Path("runs"))
    assert any(line.rstrip().endswith(f" data/{deep}a") for line in capsys.readouterr().out.splitlines())


def test_how_steps_are_computed_and_saved_is_said_where_it_is_not_the_default(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("training.recompute=full", "training.deterministic=true", "training.max_skipped_steps=2")
    text = printed(project, capsys, *changes, "checkpoint.async_save=true")
    said = "recompute every layer, kept every 1, deterministic kernels, skip up to 2 non-finite updates, "
    assert f"\nexecution {said}periodic saves in the background\n" in text
    assert "; 23.5 % more recomputed\n" in text


@pytest.mark.parametrize(
    ("horizon", "said"),
    [
        (50, "1,600 tokens; 320 are left to stages that continue this one"),
        (30, "960 tokens; the chain ends 320 tokens behind it"),
    ],
)
def test_what_lies_between_the_chain_and_its_horizon_is_said_either_way(horizon: int, said: str) -> None:
    """The stage reads 40 samples of 32 tokens."""
    plan = make_plan(schedule={"horizon_samples": horizon, "horizon_tokens": 32 * horizon, "sample_tokens": 32})
    assert ("horizon", said) in chain_rows(plan)


@pytest.mark.parametrize(
    ("planned", "said"),
    [
        (72, None),
        (73, "memory 73 GB on the fullest rank is more than 90% of the 80 GB of an h100, and"),
        (80, "memory 80 GB on the fullest rank is more than 90% of the 80 GB of an h100, and"),
        (81, "memory 81 GB on the fullest rank is more than the 80 GB of an h100, and"),
    ],
)
def test_a_plan_says_when_it_does_not_fit_the_gpu_that_is_named(
    project: PencilProject, capsys: pytest.CaptureFixture[str], planned: int, said: str | None
) -> None:
    plan = project.plan()
    assert plan.cost is not None
    (rank,) = plan.cost.memory
    fuller = rank.model_copy(update={"activations": planned * 10**9 - rank.total + rank.activations})
    plan = plan.model_copy(update={"cost": plan.cost.model_copy(update={"memory": (fuller,)})})
    for gpu, expected in (("H100", said), ("989.4", None)):  # of a peak alone no memory is known
        print_plan(plan, run_root=Path("runs"), time=GpuTime(gpu, 989.4, 0.4, 1.0, 1.0))
        notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note  memory")]
        assert [note.removeprefix("note  ")[: len(expected or "")] for note in notes] == (
            [expected] if expected else []
        )


def test_a_plan_says_of_everything_that_only_te_can_that_a_run_may_be_refused(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    fits = ("precision=bf16", "model.mamba_num_heads=16", "model.mamba_head_dim=8", "fp8.recipe=tensorwise")
    shared = ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true")
    asked = {
        "training.cuda_graphs": ("training.cuda_graphs=true",),
        "fp8.recipe tensorwise": fits,
        "parallel.tp_comm_overlap": (*shared, "parallel.tp_comm_overlap=true"),
    }
    for said, overrides in asked.items():
        world_size = 2 if "overlap" in said else 1
        text = printed(project, capsys, *overrides, world_size=world_size)
        assert f"\nnote {said}: only backend te can, and auto takes it where a GPU and its packages are" in text
        assert "only backend te" not in printed(
            project, capsys, *overrides, "training.backend=te", world_size=world_size
        )
    assert "only backend te" not in printed(project, capsys)
