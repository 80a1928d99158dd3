"""What the GPU check chooses, keeps, compares and reports; what it would run is asked here without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_tools.strict_yaml import load_yaml
from megatron_ext.models.config import transformer_config
from megatron_ext.plan.make import draft_plan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.recipe.schema import ModelRecipe
from megatron_ext.runtime.device import has_gpu
from megatron_ext.runtime.extensions import missing_for_te
from tests.gpu import check, comparison
from tests.gpu.against_megatron import options_of, step_times
from tests.gpu.benchmark import MODEL, make_benchmark_plan
from tests.gpu.comparison import REPORTS, compare, recorded_file
from tests.gpu.layouts import layouts, resumed
from tests.gpu.part import Part, Wanted, keep, read_json, read_junit, run_part
from tests.gpu.parts import chosen, parts_of
from tests.gpu.report import machine, markdown, stamp_of, write_report
from tests.support.toy_project import REPOSITORY, ToyProject, environment

without_gpu = pytest.mark.skipif(has_gpu(), reason="says what happens without a GPU")


@without_gpu
def test_the_gpu_check_ends_with_4_and_writes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tests/gpu/check.py", "--out", str(tmp_path / "report")],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, (tmp_path / "report").exists()) == (4, False)
    assert "missing: transformer-engine\n" in done.stdout
    assert "no GPU: nothing was run" in done.stdout


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["layouts te"], "part 'layouts te' is one of several GPUs: say how many, such as --gpus 8\n"),
        (["kernels", "nonsense"], "no part 'nonsense'; there are: backends,"),
    ],
)
def test_a_part_of_several_gpus_is_told_from_one_that_is_not_there(
    names: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([word for name in names for word in ("--only", name)]) == 2
    assert capsys.readouterr().out.startswith(said)


def wanted(code: str, *, name: str = "p", limit_s: float = 20.0, **more: Any) -> Wanted:
    return Wanted(name, limit_s, (sys.executable, "-c", code), read_json, **more)


def part(code: str, *, seconds_left: float = 60.0, **more: Any) -> Part:
    return run_part(wanted(code, **more), time.monotonic() + seconds_left)


def test_a_part_that_is_not_reached_says_so() -> None:
    assert part("", seconds_left=-1.0).status == "not run: out of time"


def test_a_part_that_hangs_is_ended_and_fails_the_check() -> None:
    hung = part("import time; time.sleep(30)", limit_s=1.0)
    assert hung.status == "failed: still running after 1 s"
    assert check.exit_code([Part("a", "passed"), hung]) == 1


def test_what_a_hanging_part_has_started_in_sessions_of_their_own_ends_with_it(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    code = f"""
import pathlib, signal, subprocess
def end(*_):
    rank.terminate(), rank.wait()
    pathlib.Path({str(ended)!r}).touch()
    raise SystemExit
rank = subprocess.Popen(["sleep", "20"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
signal.signal(signal.SIGTERM, end)
signal.pause()
"""
    assert part(code, limit_s=4.0).status == "failed: still running after 4 s"
    assert ended.exists()


def test_what_was_not_run_fails_nothing() -> None:
    assert check.exit_code([Part("a", "passed"), Part("b", "not run: needs mamba-ssm")]) == 0
    assert check.exit_code([Part("a", "failed")]) == 1


def test_a_part_that_lacks_a_package_is_not_run() -> None:
    assert part("", lacks=("mamba-ssm",)).status == "not run: needs mamba-ssm"


@pytest.mark.parametrize(("gpus", "queues"), [(1, None), (2, "1")])
def test_parts_on_several_gpus_have_one_queue(monkeypatch: pytest.MonkeyPatch, gpus: int, queues: str | None) -> None:
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    code = "import json, os; print(json.dumps({'queues': os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS')}))"
    assert part(code, gpus=gpus).facts == {"queues": queues}


def test_a_part_is_told_of_its_gpus_and_whether_triton_takes_the_smallest() -> None:
    keys = "('GPU_CHECK_GPUS', 'TRITON_SHARE')"
    code = f"import json, os; print(json.dumps({{key: os.environ.get(key) for key in {keys}}}))"
    assert part(code, gpus=8).facts == {"GPU_CHECK_GPUS": "8", "TRITON_SHARE": None}
    assert part(code, smallest_only=True).facts == {"GPU_CHECK_GPUS": "1", "TRITON_SHARE": "none"}


def test_a_failed_part_keeps_its_output() -> None:
    failed = part("raise SystemExit('broken')")
    assert (failed.status, failed.output) == ("failed", "broken\n")


def test_skipped_tests_never_count_as_passed(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite tests="3" failures="0" errors="0" skipped="2"><testcase>'
        '<skipped message="not run: no GPU"/></testcase></testsuite></testsuites>'
    )
    facts = read_junit("", junit)
    assert (facts["passed"], facts["skipped"], facts["not_run"]) == (1, 2, ["not run: no GPU"])
    junit.write_text('<testsuites><testsuite tests="2" failures="0" errors="0" skipped="2"/></testsuites>')
    none = Wanted("p", 20.0, (sys.executable, "-c", ""), read_junit, junit)
    assert run_part(none, time.monotonic() + 60).status == "not run: every test was skipped"


def test_the_report_has_a_row_for_each_part_and_benchmark() -> None:
    facts = {
        "date": "2026-01-01T00:00+00:00",
        "gpus": ["GPU X"],
        "cpu": "cpu",
        "cuda_of_torch": "13.0",
        "versions": {"torch": "2.13.0"},
        "missing": ["mamba-ssm"],
    }
    speed = {"layers": "backend: te", "model": "m", "rows": 8, "sequence_length": 2048, "tokens_per_s": 1000.0}
    speed |= {
        "step_ms": 1.0,
        "mfu": 0.4,
        "matmul_peak_tflops": 700.0,
        "peak_memory": 5 * 10**9,
        "planned_memory": 4 * 10**9,
    }
    speed |= {"kernels": {"busy_ms": 61.04, "shares": {"ssd": 0.22, "matrix products": 0.28}}}
    speed |= {"sampled_tokens_per_s": {"1": 58.9, "32": 1550.0}, "graphed_tokens_per_s": {"32": 3000.0}}
    counts = {"passed": 1, "skipped": 2, "not_run": ["not run: no GPU"]}
    parts = [Part("benchmark te", "passed", 9.0, speed), Part("x", "not run: why"), Part("y", "passed", 3.0, counts)]
    text = markdown(facts, [*parts, Part("z", "failed", output="one\nbroken\n")])
    assert "- benchmark te: the GPU is busy for 61.0 ms of a step: ssd 22.0%, matrix products 28.0%\n" in text
    assert "- benchmark te: sampled tokens/s: 59 of 1 at once, 1,550 of 32 at once\n" in text
    assert "- benchmark te: sampled tokens/s as CUDA graphs: 3,000 of 32 at once\n" in text
    assert "| backend: te | m | 8 x 2,048 | 1,000 | 1.0 | 40.0% | 700 TFLOP/s | 5.00 | 4.00 |" in text
    assert "| x | not run: why | 0 |  |  |\n| y | passed | 3 | 1 | 2 |\n| z | failed | 0 |  |  |\n" in text
    assert "\n- not run: no GPU\n" in text
    assert text.endswith("\n## z\n\n```\none\nbroken\n```\n")
    assert "- missing: mamba-ssm" in text


def test_the_benchmark_reads_the_vocabulary_with_its_underscores(tmp_path: Path) -> None:
    plan = make_benchmark_plan(tmp_path, "local", 1, 1, 8, load_yaml(MODEL).data)
    assert plan.model_size.padded_vocab_size == 32_768


def test_larger_layouts_of_the_benchmark_have_rows_for_each_rank(tmp_path: Path) -> None:
    recipe = load_yaml(MODEL).data
    plan = make_benchmark_plan(tmp_path, "te", 1, 2, 8, recipe, world_size=8, tensor=2, is_sharded=True)
    layout, batch = plan.layout, plan.batch
    assert (layout.world_size, layout.data_parallel_size, layout.sequence_parallel) == (8, 4, True)
    assert (batch.global_batch_size, batch.micro_batch_size, batch.num_microbatches) == (8, 2, 1)
    assert layout.overlap_param_gather


def names(gpus: int, tmp_path: Path) -> list[str]:
    return [one.name for one in chosen(parts_of(tmp_path, gpus=gpus, cores=16, missing=[]), [])]


def test_one_gpu_needs_no_network_and_several_look_at_it(tmp_path: Path) -> None:
    one, eight = names(1, tmp_path), names(8, tmp_path)
    assert set(eight) - set(one) == {
        "network", "layouts local", "layouts te", "benchmark te 1b, data x 8", "benchmark te 1b, tensor 2 x data 4",
    }  # fmt: skip
    assert "network" not in one
    assert "network" in names(2, tmp_path)
    assert not [name for name in names(3, tmp_path) if "tensor" in name]
    assert [name for name in eight if name in one] == one


def test_long_parts_run_by_their_name_only(tmp_path: Path) -> None:
    every = parts_of(tmp_path, gpus=1, cores=4, missing=[])
    assert not {"loss curves", "megatron-lm", "options of te", "graphs of sampling"} & set(names(1, tmp_path))
    assert [one.name for one in chosen(every, ["loss curves", "kernels"])] == ["kernels", "loss curves"]
    with pytest.raises(ValueError, match="no part 'curves'; there are: backends, benchmark local"):
        chosen(every, ["curves"])


def test_a_checkout_of_megatron_lm_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEGATRON_LM", raising=False)
    parts = {one.name: one for one in parts_of(tmp_path, gpus=1, cores=4, missing=["mamba-ssm"])}
    assert parts["megatron-lm"].lacks == ("mamba-ssm", "MEGATRON_LM, the path of a checkout of Megatron-LM")
    assert parts["benchmark te 1b"].lacks == ("mamba-ssm",)
    assert parts["benchmark local 1b"].lacks == ()


def test_every_part_runs_a_file_that_is_there(tmp_path: Path) -> None:
    for one in parts_of(tmp_path, gpus=8, cores=4, missing=[]):
        if "pytest" in one.words:
            file = one.words[-1]
        else:
            file = next(word for word in one.words if word.startswith("tests.gpu.")).replace(".", "/") + ".py"
        assert (REPOSITORY / file).is_file(), one


def test_all_layouts_of_a_backend_are_in_one_part_and_none_in_two(tmp_path: Path) -> None:
    parts = {one.name: one.words for one in parts_of(tmp_path, gpus=8, cores=4, missing=[])}
    chosen_by = {name: parts[f"layouts {name}"][parts[f"layouts {name}"].index("-k") + 1] for name in ("local", "te")}
    assert chosen_by == {"local": "local", "te": "not local"}
    assert all(("local" in name) != name.startswith("te ") for name in layouts(8))


def count_file(path: Path) -> str:
    return f"import pathlib; p = pathlib.Path({str(path)!r}); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"


def test_what_has_passed_is_not_run_again_under_the_same_stamp(tmp_path: Path) -> None:
    count, failures, folder = tmp_path / "count", tmp_path / "failures", tmp_path / "parts"
    breaking = wanted(f"{count_file(failures)}; raise SystemExit(1)", name="broken", alone=False)
    parts = [wanted(count_file(count), name="counted"), breaking]
    deadline = time.monotonic() + 60

    def run(stamp: str, *, is_resumed: bool) -> list[str]:
        done = check.run_all(parts, folder, {"code": stamp}, deadline, cores=2, is_resumed=is_resumed)
        return [one.status for one in done]

    assert run("a", is_resumed=False) == ["passed", "failed"]
    assert run("a", is_resumed=True) == ["passed", "failed"]
    assert (count.read_text(), failures.read_text()) == ("x", "xx")  # what has failed is run again
    run("b", is_resumed=True)
    assert count.read_text() == "xx"
    run("b", is_resumed=False)
    assert count.read_text() == "xxx"


def test_the_budget_ends_what_runs_and_leaves_out_what_is_behind_it(tmp_path: Path) -> None:
    parts = [wanted("import time; time.sleep(30)", name="long"), wanted("", name="late")]
    began = time.monotonic()
    done = check.run_all(parts, tmp_path, {}, began + 1.5, cores=2)
    assert [one.status for one in done][1] == "not run: out of time"
    assert done[0].status.startswith("failed: still running after 1 s")
    assert time.monotonic() - began < 15


def report(**facts: Any) -> dict[str, Any]:
    return {"date": "d", "gpus": ["GPU X, 1 GiB"], "versions": {}, "parts": [{"name": "b", "facts": facts}]}


def test_numbers_more_than_a_tenth_worse_are_flagged_in_their_own_direction() -> None:
    then = report(tokens_per_s=1000.0, step_ms=100.0, peak_memory=10.0, sampled_tokens_per_s={"8": 50.0})
    then["parts"][0]["facts"]["collectives_gb_per_s"] = {"all-reduce": 400.0, "all-gather": 400.0}
    now = report(tokens_per_s=899.0, step_ms=109.0, peak_memory=11.2, sampled_tokens_per_s={"8": 60.0}, mfu=0.4)
    now["parts"][0]["facts"]["collectives_gb_per_s"] = {"all-reduce": 364.0, "all-gather": 356.0}
    found = {row.what: (round(row.ratio, 3), row.is_worse) for row in compare(now, then)}
    assert found == {
        "tokens_per_s": (0.899, True),
        "step_ms": (1.09, False),
        "peak_memory": (1.12, True),
        "sampled tokens/s, 8 at once": (1.2, False),
        "all-reduce, GB/s": (0.91, False),
        "all-gather, GB/s": (0.89, True),
    }


def test_the_report_stands_beside_the_recorded_one_of_such_gpus() -> None:
    recorded = json.loads((REPORTS / "nvidia_h200_x1.json").read_text())
    assert recorded_file(recorded["gpus"]) == REPORTS / "nvidia_h200_x1.json"
    facts = {key: recorded[key] for key in ("date", "gpus", "cpu", "cuda_of_torch", "versions", "missing")}
    facts["versions"] = facts["versions"] | {"torch": "2.13.0"}
    (one,) = [Part(**part) for part in recorded["parts"] if part["name"] == "benchmark te 1b"]
    one.facts |= {"layers": "te", "planned_memory": 30e9, "tokens_per_s": 40_000.0}
    text = markdown(facts, [one])
    assert "| benchmark te 1b | tokens_per_s | 5.3e+04 | 4e+04 | 0.755 | **worse by more than 10%** |" in text
    assert "- torch 2.11.0 then, 2.13.0 now" in text


def test_gpus_without_a_recorded_report_are_told_how_to_record_one(tmp_path: Path) -> None:
    facts = {
        "date": "d",
        "gpus": ["GPU X, 1 GiB"] * 2,
        "cpu": "c",
        "cuda_of_torch": "13",
        "versions": {},
        "missing": [],
    }
    write_report(tmp_path, facts, [Part("a", "passed")])
    text = (tmp_path / "report.md").read_text()
    assert "No report of such GPUs is recorded; `check.py --record` writes gpu_x_x2.json." in text
    assert json.loads((tmp_path / "report.json").read_text())["parts"][0]["name"] == "a"


def test_the_command_lists_parts_and_refuses_those_that_it_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[:3] == ["compile te", "compile local", "training"]
    assert "loss curves   (by name only)" in listed
    assert check.main(["--only", "curves"]) == 2
    assert "no part 'curves'" in capsys.readouterr().out


@pytest.fixture
def one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch saw a GPU."""
    card = SimpleNamespace(name="GPU X", total_memory=2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)


@pytest.mark.usefixtures("one_card")
def test_the_command_runs_what_is_named_goes_on_and_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of time, so that only what was kept can have passed; of that one part was run with other code."""
    monkeypatch.setattr(comparison, "REPORTS", tmp_path)
    stamp = stamp_of(machine(missing_for_te(), gpus=1))
    for name, code in (("kernels", stamp["code_sha256"]), ("sampling", "other")):
        keep(tmp_path / "parts", Part(name, "passed", output="kept"), stamp | {"code_sha256": code})
    words = ["--out", str(tmp_path), "--seconds", "0", "--only", "kernels", "--only", "sampling"]

    def statuses(file: str) -> dict[str, str]:
        return {one["name"]: one["status"] for one in json.loads((tmp_path / file).read_text())["parts"]}

    late = "not run: out of time"
    assert check.main([*words, "--resume", "--record"]) == 0
    assert statuses("report.json") == statuses("gpu_x_x1.json") == {"kernels": "passed", "sampling": late}
    assert "kept" in (tmp_path / "report.json").read_text()
    assert "kept" not in (tmp_path / "gpu_x_x1.json").read_text()
    assert check.main(words) == 0
    assert statuses("report.json") == {"kernels": late, "sampling": late}
    assert statuses("gpu_x_x1.json")["kernels"] == "passed"  # not recorded anew


@pytest.mark.usefixtures("one_card")
def test_more_gpus_than_there_are_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--gpus", "2", "--seconds", "0", "--out", str(tmp_path)]) == 2
    assert "--gpus 2: only 1 are visible here" in capsys.readouterr().out


@pytest.mark.parametrize("name", layouts(8))
def test_every_layout_of_the_check_can_be_planned(toy_project: ToyProject, name: str) -> None:
    processes, keys = layouts(8)[name]
    loaded = load_recipe(toy_project.recipe, overrides=keys, site=toy_project.root / "site.yaml")
    assert draft_plan(loaded, world_size=processes).layout.world_size == processes


def test_fewer_gpus_have_fewer_layouts() -> None:
    assert (layouts(1), resumed(1)) == ({}, [])
    assert resumed(4) == ["local tp2 sp pp2", "te tp2 sp pp2"]
    assert max(processes for processes, _ in layouts(4).values()) == 4
    assert "te cp2" in layouts(2)


OURS_ALONE = {
    "cross_entropy_loss_fusion", "cross_entropy_fusion_impl",  # against_megatron.py says why
    "perform_initialization", "inference_sampling_seed",  # not of a training step
    "use_cpu_initialization",  # without a GPU
    "attention_softmax_in_fp32", "masked_softmax_fusion", "persist_layer_norm",  # Transformer Engine reads none of them
    "cp_comm_type", "tensor_parallel_num_weight_shards", "expert_tensor_parallel_num_weight_shards",  # of one rank
}  # fmt: skip
"""Fields of core's config that differ between Megatron-LM's run and ours."""


def test_megatron_lm_takes_its_options_and_they_mean_what_our_benchmark_does(tmp_path: Path) -> None:
    recipe = load_yaml(MODEL.with_name("hybrid_1b.yaml")).data
    code = (
        "import dataclasses, json\n"
        "from megatron.training.arguments import core_transformer_config_from_args, parse_args, validate_args\n"
        "args = parse_args()\n"
        "validate_args(args)\n"
        "config = core_transformer_config_from_args(args)\n"
        "fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}\n"
        "print(json.dumps({name: getattr(value, '__name__', str(value)) for name, value in fields.items()}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *options_of(ModelRecipe(**recipe), rows=1, sequence_length=8192, steps=20)],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = read_json(done.stdout, None)
    ours = transformer_config(make_benchmark_plan(tmp_path, "te", 1, 1, 8192, recipe), "te")
    values = {name: getattr(ours, name) for name in theirs}
    assert theirs["hidden_size"] == str(recipe["hidden_size"])
    assert {name for name, value in values.items() if getattr(value, "__name__", str(value)) != theirs[name]} - {
        name for name, value in values.items() if callable(value) and not hasattr(value, "__name__")
    } == OURS_ALONE


def test_step_times_are_read_from_megatron_lms_log() -> None:
    log = " [2026-01-01] iteration 1/ 25 | elapsed time per iteration (ms): 154.5 | lr 1\n noise\n"
    assert step_times(log * 2) == [154.5, 154.5]


def test_bandwidth_of_two_ranks_is_measured_over_gloo_too() -> None:
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "tests.gpu.network",
    ]
    done = subprocess.run(
        [*words, "--mebibytes", "1", "--rounds", "1"],
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    facts = read_json(done.stdout, None)
    assert facts["ranks"] == 2
    assert set(facts["collectives_gb_per_s"]) == {"all-reduce", "all-gather", "reduce-scatter"}
    assert all(speed > 0 for speed in facts["collectives_gb_per_s"].values())
