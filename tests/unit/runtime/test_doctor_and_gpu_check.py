"""What the doctor and the GPU check say of a machine without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.strict_yaml import load_yaml
from megatron_ext.runtime.device import has_gpu
from megatron_ext.runtime.doctor import find
from tests.gpu import check
from tests.gpu.benchmark import MODEL, make_benchmark_plan
from tests.support.toy_project import REPOSITORY, environment

without_gpu = pytest.mark.skipif(has_gpu(), reason="says what happens without a GPU")


@without_gpu
def test_the_doctor_says_which_backend_auto_takes_and_why() -> None:
    (finding,) = [finding for finding in find() if finding.what == "training.backend: auto"]
    assert finding.found == "local"
    assert finding.meaning.startswith("te needs a GPU, transformer-engine")


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


def part(
    code: str, *, limit_s: float = 20.0, seconds_left: float = 60.0, unless: list[str] | None = None
) -> check.Part:
    deadline = check.time.monotonic() + seconds_left
    return check.run_part("p", limit_s, deadline, ([sys.executable, "-c", code], None), check.read_json, unless=unless)


def test_a_part_that_is_not_reached_says_so() -> None:
    assert part("", seconds_left=-1.0).status == "not run: out of time"


def test_a_part_that_hangs_is_ended_and_fails_the_check() -> None:
    hung = part("import time; time.sleep(30)", limit_s=1.0)
    assert hung.status == "failed: still running after 1 s"
    assert check.exit_code([check.Part("a", "passed"), hung]) == 1


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
    assert check.exit_code([check.Part("a", "passed"), check.Part("b", "not run: needs mamba-ssm")]) == 0
    assert check.exit_code([check.Part("a", "failed")]) == 1


def test_a_part_that_lacks_a_package_is_not_run() -> None:
    assert part("", unless=["mamba-ssm"]).status == "not run: needs mamba-ssm"


def test_a_failed_part_keeps_its_output() -> None:
    failed = part("raise SystemExit('broken')")
    assert (failed.status, failed.output) == ("failed", "broken\n")


def test_skipped_tests_never_count_as_passed(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite tests="3" failures="0" errors="0" skipped="2"><testcase>'
        '<skipped message="not run: no GPU"/></testcase></testsuite></testsuites>'
    )
    facts = check.read_junit("", junit)
    assert (facts["passed"], facts["skipped"], facts["not_run"]) == (1, 2, ["not run: no GPU"])


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
    text = check.markdown(facts, [check.Part("benchmark te", "passed", 9.0, speed), check.Part("x", "not run: why")])
    assert "| backend: te | m | 8 x 2,048 | 1,000 | 1.0 | 40.0% | 700 TFLOP/s | 5.00 | 4.00 |" in text
    assert "| x | not run: why | 0 |  |  |" in text
    assert "- missing: mamba-ssm" in text


def test_the_benchmark_reads_the_vocabulary_with_its_underscores(tmp_path: Path) -> None:
    plan = make_benchmark_plan(tmp_path, "local", 1, 1, 8, load_yaml(MODEL).data)
    assert plan.model_size.padded_vocab_size == 32_768
