"""`megatron-ext study plan`: what it prints, its exit codes, without torch and within two seconds."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ext.__main__ import main
from tests.support.pencil_project import PencilProject
from tests.support.study_project import make_study_project

REPOSITORY = Path(__file__).parents[2]
SHIPPED = sorted(
    str(path.relative_to(REPOSITORY))
    for path in REPOSITORY.glob("recipes/*/*.yaml")
    if path.read_text().partition("\nstudy: ")[1]
)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PencilProject:
    monkeypatch.chdir(tmp_path)
    return make_study_project()


def test_the_plan_shows_graph_arms_differences_and_what_sharing_saves(
    study: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "plan", "study.yaml"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["pencil  study.yaml", "4 arms, 10 stages, 5 unique, 2 evaluations"]
    tree = [line.split("  ")[0] for line in lines if line.startswith(("base ", "├─", "│", "└─", "   └─"))]
    assert [name.strip() for name in tree if name.strip()] == ["base", "├─ plain", "│", "└─ more"]
    assert any(line.startswith("plain-chat (baseline)") for line in lines)
    assert "pretrain data.repeated  confounds: b is small" in lines
    assert lines[-1].startswith("Sharing trains 5 of 10 stages: ")


def test_seeds_and_arms_narrow_or_widen_the_plan(study: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "plan", "study.yaml", "--seeds", "2", "--arms", "more,plain"]) == 0
    out = capsys.readouterr().out
    assert "2 arms, 8 stages, 6 unique, 0 evaluations" in out
    assert "more (seed 1235)" in out


def test_the_json_is_the_plan_and_nothing_else(study: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "plan", "study.yaml", "--json", "--gpu", "100", "--mfu", "0.5"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["totals"]["unique_stages"] == 5
    assert plan["hardware"] == {"gpu": "100", "mfu": 0.5}
    assert plan["totals"]["cost"]["gpu_seconds"] == pytest.approx(plan["totals"]["cost"]["flops"] / 50e12)


@pytest.mark.parametrize("name", ["graph.svg", "graph.dot"])
def test_the_graph_is_drawn_into_the_file(study: PencilProject, name: str) -> None:
    assert main(["study", "plan", "study.yaml", "--graph", name]) == 0
    assert Path(name).read_text().startswith("<svg " if name.endswith("svg") else "digraph ")


def test_arms_that_differ_in_more_than_they_declare_end_with_code_2_and_the_list(
    study: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    study.edit(
        "study.yaml", "confounds:\n  - {key: data.repeated, stage: pretrain, arms: [more*], why: b is small}\n", ""
    )
    assert main(["study", "plan", "study.yaml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(
        "error: study.yaml:6: varies: 1 difference between arms that the study does not name:"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mfu", "0.4"], "study plan: --mfu and --gpu belong together"),
        (["--gpu", "h100", "--mfu", "4"], "--mfu 4 is no share of the peak"),
        (["--arms", "mine"], "--arms mine: no such arm"),
        (["--graph", "graph.png"], "--graph graph.png: name a file that ends in .dot or .svg"),
    ],
)
def test_a_wrong_option_ends_with_code_2(
    study: PencilProject, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["study", "plan", "study.yaml", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("file", SHIPPED)
def test_a_shipped_study_is_planned_without_torch_in_two_seconds_of_cpu_time(file: str) -> None:
    program = (
        "import sys; from megatron_ext.__main__ import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules, 'torch'; sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "study", "plan", file]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    taken = []
    for _ in range(3):  # other work on the machine makes a run slower, and no run faster
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if taken[-1] < 2:
            break
    assert min(taken) < 2


def test_no_module_of_the_study_loads_torch() -> None:
    files = sorted((REPOSITORY / "megatron_ext" / "study").rglob("*.py"))
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for path in files]
    heavy = {"torch", "megatron", "transformers", "lm_eval"}
    program = f"import sys, {', '.join(names)}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
