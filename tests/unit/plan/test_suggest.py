"""Suggested layouts fit, are ranked as stated, and are selected by the options that stand beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_tools.errors import RecipeError
from megatron_ext.__main__ import main
from megatron_ext.plan.flops import stage_token_flops
from megatron_ext.plan.hardware import RESERVE
from megatron_ext.plan.make import draft_plan
from megatron_ext.plan.memory import memory_per_rank
from megatron_ext.plan.suggest import MOST, Suggestion, search_layouts, suggest_layouts
from megatron_ext.recipe.load import LoadedRecipe, load_recipe
from tests.support.sft_project import SHORT, make_sft_project, write_chat

BASE = Path(__file__).parents[3] / "recipes/front_loading/pretrain/base_v1.yaml"
GB = 10**9


def base(*overrides: str) -> LoadedRecipe:
    return load_recipe(BASE, overrides=overrides)


def sizes(found: Sequence[Suggestion]) -> list[tuple[int, int]]:
    return [one.candidate.sizes for one in found]


@pytest.fixture(scope="module")
def paper() -> list[Suggestion]:
    """The paper's machine."""
    return suggest_layouts(base(), gpus=512, gpu_memory=80 * GB)


def test_they_fit_and_leave_the_reserve(paper: list[Suggestion]) -> None:
    assert paper
    assert all(one.memory.total <= (1 - RESERVE) * 80 * GB for one in paper)


def test_what_fp8_keeps_of_weights_must_fit_too(paper: list[Suggestion]) -> None:
    best = paper[0]
    room = int(best.memory.total / (1 - RESERVE)) + 1
    chosen = (best.candidate.sizes, best.candidate.batch.micro_batch_size, best.candidate.execution.recompute)

    def found(*overrides: str) -> list[Suggestion]:
        return [
            one
            for one in suggest_layouts(base(*overrides), gpus=512, gpu_memory=room)
            if (one.candidate.sizes, one.candidate.batch.micro_batch_size, one.candidate.execution.recompute) == chosen
        ]

    assert [one.memory.total for one in found()] == [best.memory.total]
    assert found("fp8.recipe=tensorwise") == []


def test_the_order_is_the_stated_one(paper: list[Suggestion]) -> None:
    ranks = [one.candidate.rank for one in paper]
    assert ranks == sorted(ranks)
    assert sizes(paper)[:3] == [(2, 1), (4, 1), (8, 1)]
    assert len(set(sizes(paper))) == len(paper)


def test_the_options_select_what_was_suggested(paper: list[Suggestion]) -> None:
    for one in paper:
        loaded = base(*one.overrides, "training.backend=te")
        draft = draft_plan(loaded, world_size=512)
        assert draft.layout == one.candidate.layout
        assert draft.batch == one.candidate.batch
        assert draft.execution == one.candidate.execution
        ranks = memory_per_rank(loaded.recipe.model, draft.layout, draft.batch, draft.execution, precision="bf16")
        assert max(rank.total for rank in ranks) == one.memory.total


RAMP = ("training.ramp_tokens=20B", "training.ramp_start_batch_size=96", "training.ramp_increment=96")
IN_SHARDS = ("checkpoint.optimizer_format=dp_reshardable",)
TIED = ("model.share_embeddings_and_output_weights=true",)


@pytest.mark.parametrize("gpus", [8, 64])
@pytest.mark.parametrize(
    "awkward",
    [
        RAMP,
        IN_SHARDS,
        TIED,
        (*RAMP, *IN_SHARDS, *TIED),
        ("training.recompute=full", "training.recompute_num_layers=20"),
        ("training.recompute=selective", "training.recompute_modules=[mlp]", "training.micro_batch_size=7"),
        ("parallel.use_distributed_optimizer=false", "parallel.pipeline_model_parallel_size=9"),
    ],
    ids=" ".join,
)
def test_every_suggested_line_plans(awkward: tuple[str, ...], gpus: int) -> None:
    found = suggest_layouts(base(*awkward), gpus=gpus, gpu_memory=640 * GB)
    assert len(found) > 1
    for one in found:
        draft = draft_plan(base(*awkward, *one.overrides), world_size=gpus)
        assert draft.batch == one.candidate.batch, one.set_line


@pytest.fixture(scope="module")
def packed() -> LoadedRecipe:
    return load_recipe(BASE.parents[1] / "sft/shq.yaml")


def test_a_packed_row_is_a_microbatch_in_all_that_is_suggested(packed: LoadedRecipe) -> None:
    found = suggest_layouts(packed, gpus=64, gpu_memory=80 * GB)
    assert sizes(found)[:2] == [(4, 1), (8, 1)]
    assert {one.candidate.batch.micro_batch_size for one in found} == {1}
    for one in found:
        load_recipe(packed.path, overrides=one.overrides)  # refused there if a row were no microbatch


def test_ranks_without_a_row_idle_in_steps_of_conversations(tmp_path: Path) -> None:
    """Four conversations of 4 tokens fill a row of 16: each of the 4 steps has one row, whatever has no row waits."""
    project = make_sft_project(tmp_path)
    write_chat(project, "c", [SHORT] * 12)
    write_chat(project, "d", [(4, None)] * 4)
    loaded = project.load("sft.batch_unit=conversations", "training.global_batch_size=4")
    found = {one.candidate.sizes: one.candidate for one in suggest_layouts(loaded, gpus=4, gpu_memory=80 * GB)}
    assert (found[1, 1].batch.num_microbatches, found[1, 1].idle) == (1, 3.0)
    assert (found[2, 1].batch.num_microbatches, found[2, 1].idle) == (1, 1.0)
    assert next(iter(found)) == (2, 1)
    assert not (project.root / "runs").exists()


def test_ranks_without_a_row_idle_in_the_last_step_of_rows(tmp_path: Path) -> None:
    """Seven rows in steps of two: on four ranks they take the time of sixteen, on two that of eight."""
    found = suggest_layouts(make_sft_project(tmp_path).load(), gpus=4, gpu_memory=80 * GB)
    idle = {one.candidate.sizes: one.candidate.idle for one in found}
    assert idle[1, 1] == pytest.approx(16 / 7 - 1)
    assert idle[2, 1] == pytest.approx(8 / 7 - 1)


def test_rows_of_data_that_is_not_built_are_counted_from_its_declared_size_or_said_to_be_unknown(
    packed: LoadedRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1.2M conversations of 12B tokens: 512 of 10,000 tokens fill 156.25 rows of 32,768."""
    found = {one.candidate.sizes: one.candidate for one in suggest_layouts(packed, gpus=64, gpu_memory=80 * GB)}
    assert found[4, 1].layout.data_parallel_size == 16
    assert found[4, 1].batch.num_microbatches == 10
    assert found[4, 1].idle == pytest.approx(160 / 156.25 - 1, rel=1e-4)
    project = make_sft_project(tmp_path)
    for file in (project.root / "data").glob("c*"):
        file.unlink()
    command = ["plan", "--suggest", "--world-size", "64", "--gpu-memory", "80GB", "--site", str(project.site)]
    command += ["--set", "sft.batch_unit=conversations"]
    assert main([*command, str(project.recipe)]) == 0
    assert "counted as if each conversation filled a row, for the data is not built" in capsys.readouterr().out
    assert main([*command, str(packed.path)]) == 0
    assert "as if each conversation" not in capsys.readouterr().out


def test_shards_are_saved_by_the_distributed_optimizer_also_where_no_rank_shares_parameters() -> None:
    (one,) = suggest_layouts(base(*IN_SHARDS), gpus=1, gpu_memory=640 * GB)
    assert one.candidate.layout.use_distributed_optimizer
    (one,) = suggest_layouts(base(), gpus=1, gpu_memory=640 * GB)
    assert not one.candidate.layout.use_distributed_optimizer


def test_what_no_layout_mends_is_refused_in_its_own_words() -> None:
    with pytest.raises(RecipeError, match=r"ramp_tokens: .* does not end within budget\.tokens"):
        suggest_layouts(base(*RAMP, "training.ramp_tokens=2T"), gpus=64, gpu_memory=640 * GB)


def test_a_ramp_that_divides_among_no_ranks_is_named() -> None:
    with pytest.raises(RecipeError, match="must divide global_batch_size 768, ramp_start_batch_size 1 and ramp_incr"):
        suggest_layouts(
            base(*RAMP, "training.ramp_start_batch_size=1", "training.ramp_increment=13"),
            gpus=128 * 59,
            gpu_memory=640 * GB,
        )


def test_less_memory_asks_for_more_ranks_or_recomputation() -> None:
    roomy = suggest_layouts(base(), gpus=8, gpu_memory=80 * GB)[0].candidate
    tight = suggest_layouts(base(), gpus=8, gpu_memory=40 * GB)[0].candidate
    assert (roomy.sizes, roomy.execution.recompute) == ((2, 1), "none")
    assert tight.rank > roomy.rank


def test_idle_and_repeated_work_are_shares_of_a_step() -> None:
    pipeline = suggest_layouts(base("training.backend=local"), gpus=7, gpu_memory=640 * GB)[0].candidate
    assert (pipeline.sizes, pipeline.batch.num_microbatches) == ((1, 7), 768)
    assert pipeline.idle == pytest.approx((768 + 6) / 768 * pipeline.imbalance - 1)
    stages = stage_token_flops(base().recipe.model, pipeline.layout, 8192)
    assert pipeline.imbalance == pytest.approx(max(stages) / (sum(stages) / 7))
    assert 1.0 < pipeline.imbalance < 1.5
    full = suggest_layouts(base("training.backend=local"), gpus=2, gpu_memory=95 * GB)[0].candidate
    assert full.execution.recompute == "full"
    assert 0.25 < full.recomputed < 1 / 3  # a forward of the layers; the output layer is not computed again


def test_rows_are_not_shared_where_something_fits_without_doing_anything_again(paper: list[Suggestion]) -> None:
    assert {one.candidate.layout.context_parallel_size for one in paper} == {1}


def test_rows_too_long_for_a_rank_are_shared(capsys: pytest.CaptureFixture[str]) -> None:
    long = ("training.sequence_length=131072", "training.global_batch_size=48")
    best = suggest_layouts(base(*long), gpus=64, gpu_memory=80 * GB)[0].candidate
    assert (best.all_sizes, best.execution.recompute) == ((2, 8, 1), "none")
    keys = [word for key in long for word in ("--set", key)]
    assert main(["plan", str(BASE), *keys, "--suggest", "--world-size", "64", "--gpu-memory", "80GB"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "8", "1", "2", "4"] in [line[:5] for line in lines]  # tensor, pipeline, context, data
    unshared = suggest_layouts(base(*long, "training.backend=local"), gpus=64, gpu_memory=640 * GB)
    assert {one.candidate.layout.context_parallel_size for one in unshared} == {1}


def test_when_nothing_fits_the_smallest_need_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(BASE), "--suggest", "--world-size", "8", "--gpu-memory", "10GB"]) == 2
    text = capsys.readouterr().err
    assert text.startswith(
        "error: --gpu-memory 10 GB: nothing fits 8 GPUs with 10% of each kept free.\n  smallest need  "
    )
    need = float(text.split("smallest need  ")[1].split(" GB")[0])
    enough = int(need / (1 - RESERVE) * 1.001 * GB)
    found = suggest_layouts(base(), gpus=8, gpu_memory=enough)
    assert found[0].set_line in text
    with pytest.raises(RecipeError, match="nothing fits"):
        suggest_layouts(base(), gpus=8, gpu_memory=int(need * GB))


def test_a_number_of_gpus_without_a_layout_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        suggest_layouts(base(), gpus=53, gpu_memory=80 * GB)
    assert str(caught.value) == (
        "--world-size 53: no layout is legal: TP can be 1, 2, 4, 8, and 53 / (TP x PP) must divide "
        "global_batch_size 768; take another number of GPUs or another batch"
    )


def test_the_table_and_the_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(BASE), "--suggest", "--world-size", "64", "--gpu-memory", "80GB"]
    assert main(command) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert main([*command, "--json"]) == 0
    best = json.loads(capsys.readouterr().out)[0]
    row = next(line for line in lines if line[:1] == ["1"])
    layout = best["layout"]
    assert row[1:4] == [str(layout[f"{kind}_parallel_size"]) for kind in ("tensor_model", "pipeline_model", "data")]
    assert row[7] == f"{best['memory']['total'] / GB:,.1f}"
    assert ["1", *(word for key in best["set"] for word in ("--set", key))] in lines
    assert any(line[:2] == ["ranked", "by"] for line in lines)


SUGGEST = ["--suggest", "--world-size", "8", "--gpu-memory", "80GB"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suggest"], "--suggest needs --world-size N, and --gpu GPU or --gpu-memory SIZE"),
        (["--suggest", "--world-size", "8"], "--suggest needs --world-size N, and --gpu GPU or --gpu-memory SIZE"),
        (["--suggest", "--gpu", "h100"], "--suggest needs --world-size N, and --gpu GPU or --gpu-memory SIZE"),
        (["--suggest", "--gpus", "8", "--gpu", "h100"], "--gpus 8: is --world-size now"),
        (["--gpu-memory", "8GB"], "--gpu-memory: not read without --suggest"),
        ([*SUGGEST, "--mfu", "0.4", "--gpu", "h100"], "--mfu: not read with --suggest"),
        (["--network", "50GB"], "--network: not read without --gpu"),
        (["--points", "p", "--mfu", "0.4", "--gpu", "h100"], "--points: not read with --mfu"),
        (["--gpu", "989.4"], "--gpu '989.4': its memory and links are not known"),
        ([*SUGGEST, "--gpu", "b9"], "--gpu 'b9': its memory and links are not known"),
        (["--json", "--mfu", "7", "--gpu", "nonsense"], "--mfu 7 is no share of the peak"),
        (["--json", "--mfu", "0.4", "--gpu", "nonsense"], "--gpu 'nonsense': use a100"),
    ],
)
def test_options_that_would_not_be_read_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(BASE), *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert f"error: plan: {message}" in err


def test_hours_are_in_the_json_and_auto_is_counted_as_te_where_gpus_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    time = ["--mfu", "0.5", "--gpu", "1000"]

    def printed(*words: str) -> str:
        assert main(["plan", str(BASE), *words]) == 0
        return capsys.readouterr().out

    bare, timed = json.loads(printed("--json")), json.loads(printed("--json", *time))
    hours = timed.pop("gpu_time")
    assert hours["gpu_hours"] == bare["cost"]["total_flops"] / (1000e12 * 0.5) / 3600
    te = json.loads(printed("--json", "--set", "training.backend=te"))
    assert timed["cost"]["memory"] == te["cost"]["memory"] != bare["cost"]["memory"]
    assert timed | {"cost": None} == bare | {"cost": None}
    assert "activations as backend local keeps them on a CPU; with --gpu auto is counted as te" in printed()
    assert "activations of backend te (as auto is counted on GPUs) are an estimate" in printed(*time)


def test_a_size_without_its_unit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(BASE), "--suggest", "--world-size", "8", "--gpu-memory", "80"])
    assert ended.value.code == 2
    assert "write a number and its unit" in capsys.readouterr().err


def test_a_padding_that_stands_against_context_parallelism_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the shipped stage nothing fits 20 GB without computing again, and CP needs pieces of a multiple of 4 to 16."""
    recipe = str(BASE.parents[1] / "sft/shq.yaml")
    command = ["plan", recipe, "--suggest", "--world-size", "64", "--gpu-memory", "20GB"]
    assert main(command) == 0
    said = "context     none was tried: it cuts each conversation into 2 x context pieces, and sft.pad_multiple is 1; "
    assert f"{said}ask again with --set sft.pad_multiple=16, which makes it another stage" in capsys.readouterr().out
    assert main([*command, "--set", "sft.pad_multiple=16"]) == 0
    out = capsys.readouterr().out
    assert "parallel.context_parallel_size=" in out
    assert "none was tried" not in out
    assert main([*command[:-1], "80GB"]) == 0
    assert "none was tried" not in capsys.readouterr().out


def test_what_fits_nowhere_is_named_with_its_least_need(capsys: pytest.CaptureFixture[str]) -> None:
    """An 8B does not fit one H100 in any way, nor does half of it: 8.1e9 x (2 + 4) / 2 + 12 / 4 is 48.6 and 24.3 GB."""
    search = search_layouts(base(), gpus=16, gpu_memory=40 * GB)
    alone = {one.candidate.sizes: one for one in search.too_large}
    assert (1, 1) in alone
    assert alone[1, 1].candidate.execution.recompute == "full"
    assert alone[1, 1].memory.total > (1 - RESERVE) * 40 * GB
    assert not set(alone) & {one.candidate.sizes for one in search.found}
    assert main(["plan", str(BASE), "--suggest", "--world-size", "16", "--gpu-memory", "40GB"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("too large ")]
    assert f"1 x 1 x 1 ({alone[1, 1].memory.total / GB:.3g} GB)" in line


def test_sizes_behind_the_shown_ones_are_counted(paper: list[Suggestion]) -> None:
    search = search_layouts(base(), gpus=512, gpu_memory=80 * GB)
    assert len(search.found) == len(paper) == MOST
    every = search.further + len(search.found) + len(search.too_large)
    # TP 1 to 8, PP 1 to 32 of 52 layers, in powers of two; 768 rows do not divide among 512 ranks of a single one.
    assert every == 4 * 6 - 1
