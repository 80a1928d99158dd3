"""`megatron-ext` answers without torch, with documented commands, exact errors and exit codes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ext.__main__ import VERBS, build_parser, main
from megatron_ext.cli.verb import Verb
from megatron_ext.plan.stage_plan import StagePlan
from tests.support.pencil_project import PencilProject

REPOSITORY = Path(__file__).parents[2]


def started(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


LEAVES = [
    (*above, verb)
    for above, verbs in [((), VERBS), *(((top,), top.verbs()) for top in VERBS if top.verbs is not None)]
    for verb in verbs
    if verb.verbs is None
]
"""Every command that does something, with the commands that it stands under."""


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: " ".join(verb.name for verb in path))
def test_the_help_of_a_verb_starts_with_a_command(path: tuple[Verb, ...], capsys: pytest.CaptureFixture[str]) -> None:
    names = [verb.name for verb in path]
    with pytest.raises(SystemExit) as ended:
        main([*names, "--help"])
    lines = capsys.readouterr().out.splitlines()
    examples = lines[: lines.index("")]
    assert ended.value.code == 0
    for words in map(shlex.split, examples):
        assert words[: 3 + len(names)] == ["python", "-m", "megatron_ext", *names]
        assert build_parser().parse_args(words[3:]).handler == path[-1].handler
    assert len(examples) == 1 + bool(path[-1].another)


def test_a_verb_loads_nothing_of_what_the_others_take(project: PencilProject) -> None:
    code = """
import sys
from megatron_ext.__main__ import main
assert main(["plan", "pretrain.yaml"]) == 0
print(sorted({"megatron_ext.evaluate.tasks", "megatron_ext.study.cli"} & set(sys.modules)))
"""
    done = started(project.root.absolute(), "-c", code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_run_as_a_verb_names_the_program_that_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "recipes/demo/pretrain.yaml"]) == 2
    assert "run: a stage is trained by another program: python -m megatron_ext.run RECIPE" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["validate", "show", "diff"])
def test_the_command_of_a_help_runs_without_data(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    example = next(known.example for known in VERBS if known.name == verb)
    assert main(shlex.split(example)) == 0
    assert capsys.readouterr().out


def test_validate_prints_a_line_a_file(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "model.yaml", "a.yaml"]) == 0
    assert capsys.readouterr().out == "model.yaml: ok: model pencil, 267,464 parameters\na.yaml: ok: source a, math\n"


def test_validate_goes_on_behind_a_bad_file(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    project.edit("model.yaml", "hidden_size: 64", "hidden_size: 0")
    assert main(["validate", "model.yaml", "a.yaml"]) == 2
    said = capsys.readouterr()
    assert said.err == "error: model.yaml:3: hidden_size: 0 is out of range; it must be greater than 0\n"
    assert said.out == "a.yaml: ok: source a, math\n"


def test_plan_as_json_prints_the_plan_alone(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pretrain.yaml", "--json", "--world-size", "2", "--set", "seed=7"]) == 0
    printed = StagePlan.model_validate(json.loads(capsys.readouterr().out))
    assert printed == project.plan("seed=7", world_size=2)


def test_plan_shows_where_the_stage_will_be_written(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pretrain.yaml", "--run-root", "elsewhere"]) == 0
    assert f"elsewhere/stages/{project.plan().stage_id}" in capsys.readouterr().out


def test_a_recipe_error_ends_with_2(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pretrain.yaml", "--set", "parallel.tensor_model_parallel_size=3"]) == 2
    assert capsys.readouterr().err == (
        "error: --set parallel.tensor_model_parallel_size=3: parallel.tensor_model_parallel_size: "
        "3 does not divide num_attention_heads 4, num_query_groups 2, padded vocab_size 1,024, mamba_num_heads 8, "
        "mamba_num_groups 2, ffn_hidden_size 128; legal: 1, 2\n"
    )


def test_missing_data_ends_with_3(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/a.manifest.json").unlink()
    assert main(["plan", "pretrain.yaml"]) == 3
    assert "python -m data_tools tokenize" in capsys.readouterr().err


def test_a_missing_recipe_ends_with_2(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "nothing.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: nothing.yaml: no such file; looked for")


@pytest.mark.parametrize(("file", "kind"), [("model.yaml", "model"), ("a.yaml", "source"), ("site.yaml", "site")])
def test_a_file_that_is_no_stage_is_one_problem(
    project: PencilProject, file: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", file]) == 2
    assert capsys.readouterr().err == (
        f"error: {file}: this is a {kind} file; name a stage recipe, such as recipes/demo/pretrain.yaml\n"
    )


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_world_size_is_a_positive_number(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "pretrain.yaml", f"--world-size={number}"])
    assert ended.value.code == 2
    assert "is no whole number of at least 1" in capsys.readouterr().err


def test_show_prints_the_whole_recipe(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "pretrain.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  # ")[0].rstrip() == "stage: pretrain"
    assert lines[-1].split() == ["seed:", "1234", "#", "default"]


def test_show_explains_several_keys(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "pretrain.yaml", "--explain", "seed", "--explain", "optimizer.lr"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")] == [
        "seed",
        "optimizer.lr",
    ]


def test_diff_takes_overrides_for_both(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "pretrain.yaml", "pretrain.yaml", "--set", "seed=7"]) == 0
    identity = project.plan("seed=7").stage_id
    assert capsys.readouterr().out == f"no key differs\nsame stage id: {identity}\n"


def test_validate_and_plan_import_no_torch(project: PencilProject) -> None:
    code = """
import sys
from megatron_ext.__main__ import main
base = ["plan", "recipes/front_loading/pretrain/base_v1.yaml"]
for words in (
    ["validate", "pretrain.yaml"],
    ["plan", "pretrain.yaml"],
    ["diff", "pretrain.yaml", "pretrain.yaml"],
    [*base, "--world-size", "512"],
    [*base, "--suggest", "--world-size", "512", "--gpu-memory", "80GB"],
    [*base, "--world-size", "512", "--gpu", "h100"],
):
    assert main(words) == 0
print("heavy:", sorted({"torch", "megatron", "tokenizers", "transformers"} & set(sys.modules)))
"""
    start = time.perf_counter()
    done = started(project.root.absolute(), "-c", code)
    print(f"validate, plan, diff and suggest in one process: {time.perf_counter() - start:.2f} s")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_a_reader_that_has_gone_is_no_error(project: PencilProject) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "megatron_ext", "show", "pretrain.yaml"],
        cwd=project.root,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_wide_plan_is_not_cut_by_a_narrow_terminal_setting(project: PencilProject) -> None:
    done = started(project.root.absolute(), "-m", "megatron_ext", "plan", "pretrain.yaml")
    assert done.returncode == 0, done.stderr
    assert any(line.rstrip().endswith("data/a") and " a " in f" {line}" for line in done.stdout.splitlines())
    assert "final_norm 64, output 65,536" in done.stdout
