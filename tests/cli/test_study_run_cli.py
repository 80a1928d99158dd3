"""`megatron-ext study run`, `status` and `cancel` from the command line, where nothing is trained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ext.__main__ import main
from megatron_ext.study.launcher import Launched, write_launched
from megatron_ext.study.make import make_study_plan
from megatron_ext.study.processes import identity_of
from megatron_ext.study.study_lock import only_runner
from tests.support.toy_project import ToyProject
from tests.support.toy_study import ToyStudy, add_study, make_toy_study

PLACE = ["study.yaml", "--site", "site.yaml"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ToyStudy:
    return make_toy_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def study(made: ToyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyStudy:
    """A copy that a test may damage, as working directory."""
    root = tmp_path / "study"
    shutil.copytree(made.root, root)
    (root / "site.yaml").write_text(f"data_root: {root}/data\nrun_root: {root}/runs\n")
    monkeypatch.chdir(root)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return add_study(ToyProject(root))


ALL = ("common.yaml", "sums_base.yaml", "words_base.yaml", "sft.yaml")


def finish(study: ToyStudy, *recipes: str, seeds: int | None = None) -> None:
    """Makes stages of these recipes look finished, and their evaluations."""
    plan = make_study_plan(study.file, site="site.yaml", seeds=seeds)
    for node in plan.stages:
        if node.recipe in recipes:
            folder = study.root / "runs" / "stages" / node.stage_id
            folder.mkdir(parents=True)
            (folder / "stage.json").write_text("{}")
            for one in plan.evaluations_of(node.stage_id):
                (folder / "evaluations" / one.folder).mkdir(parents=True)
                (folder / "evaluations" / one.folder / "results.json").write_text("{}")


def test_data_that_are_not_there_are_refused_before_anything_starts(
    study: ToyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    (study.root / "data" / "words.manifest.json").unlink()
    source = study.root / "words.yaml"
    source.write_text(source.read_text() + "declared_tokens: 100K\ndeclared_documents: 400\n")  # so it can be planned
    assert main(["study", "run", *PLACE, "--dry-run"]) == 0
    assert "(its data are not there yet, so its id will change)" in capsys.readouterr().out
    assert main(["study", "run", *PLACE]) == 3
    assert "words" in capsys.readouterr().err
    assert not (study.root / "runs" / "studies").exists()


def test_a_suite_that_asks_a_file_that_is_not_there_is_refused_before_anything_starts(
    study: ToyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = study.root / "evaluate" / "held.yaml"
    suite.write_text("suite: held\ntasks: [{task: 'verifiable:nothing.jsonl', name: sums}]\n")
    for options in ([], ["--dry-run"]):
        assert main(["study", "run", *PLACE, *options]) == 3
        assert "evaluate/held.yaml: verifiable:nothing.jsonl: no such file" in capsys.readouterr().err
    assert not (study.root / "runs" / "studies").exists()


def test_a_dry_run_says_what_would_begin_and_writes_nothing(
    study: ToyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(study, "common.yaml")
    before = sorted(study.root.rglob("*"))
    assert main(["study", "run", *PLACE, "--dry-run", "--workers", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    plan = make_study_plan(study.file, site="site.yaml")
    common, sums = plan.stages[0].stage_id, plan.stages[1].stage_id
    assert lines[0] == f"toy: 1 of 7 finished, 6 waiting; 6 nodes to run in {study.root}/runs"
    assert lines[1].startswith("2 workers on ")
    assert f"{sums}: waiting" in lines  # its parent is finished
    place = f"--site site.yaml --run-root {study.root}/runs"
    assert any(line.endswith(f"-m megatron_ext.run sums_base.yaml --set continue={common} {place}") for line in lines)
    held = plan.evaluations[0]
    folder = f"{study.root}/runs/stages/{held.stage_id}"
    assert f"{held.stage_id}.{held.folder}: waiting after {held.stage_id}" in lines
    asked = f"-m megatron_ext evaluate {folder} --suite evaluate/held.yaml --name {held.folder} --set-aside"
    assert any(line.endswith(asked) for line in lines)
    assert sorted(study.root.rglob("*")) == before


def test_only_takes_one_kind_of_node(study: ToyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "run", *PLACE, "--dry-run", "--only", "evaluate"]) == 0
    output = capsys.readouterr().out
    assert "toy: 0 of 7 finished, 7 waiting; 2 nodes to run in" in output
    assert "megatron_ext.run" not in output
    assert output.count("which is not finished and is left out of this run") == 2


def test_a_run_whose_nodes_all_need_what_is_left_out_is_refused(
    study: ToyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "run", *PLACE, "--only", "sft"]) == 2
    assert "The stages before are left out of this run: leave out --only" in capsys.readouterr().err


def test_a_kind_that_the_study_has_not_is_refused(study: ToyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "run", *PLACE, "--only", "rl"]) == 2
    said = "error: --only rl: study.yaml has no such nodes; it has: pretrain, sft, evaluate\n"
    assert capsys.readouterr().err == said
    assert not (study.root / "runs" / "studies").exists()


def test_what_slurm_does_not_get_for_its_parents_are_left_out_ends_with_code_2(
    study: ToyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    squeue = study.root / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/bash\n")  # nothing is in the queue
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(squeue.parent), prepend=os.pathsep)
    with (study.root / "site.yaml").open("a") as site:
        site.write("slurm: {time: '60'}\n")
    assert main(["study", "run", *PLACE, "--launcher", "slurm", "--only", "sft"]) == 2
    captured = capsys.readouterr()
    assert "toy: 0 of 2 unfinished nodes submitted; scripts in " in captured.out
    assert "2 of 2 unfinished nodes were not submitted" in captured.err


def test_a_dry_run_for_slurm_writes_no_script_where_ids_will_change(
    study: ToyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    (study.root / "data" / "words.manifest.json").unlink()
    source = study.root / "words.yaml"
    source.write_text(source.read_text() + "declared_tokens: 100K\ndeclared_documents: 400\n")
    with (study.root / "site.yaml").open("a") as site:
        site.write("slurm: {time: '60'}\n")
    before = sorted(study.root.rglob("*"))
    assert main(["study", "run", *PLACE, "--launcher", "slurm", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("No script is written: of ")
    assert "its data are not there yet, so its id will change" in out
    assert "sbatch" not in out
    assert sorted(study.root.rglob("*")) == before


def test_ranks_that_stages_cannot_share_are_refused_before_anything_is_submitted(
    study: ToyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    with (study.root / "site.yaml").open("a") as site:
        site.write("slurm: {time: '60', ranks_per_node: 3, nodes: 1}\n")  # of batches of 8
    assert main(["study", "run", *PLACE, "--launcher", "slurm", "--dry-run"]) == 2
    assert "nodes x ranks of a node are more ranks than stages can share" in capsys.readouterr().err
    assert not (study.root / "runs" / "studies").exists()


def test_a_study_that_is_finished_begins_nothing(study: ToyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    finish(study, *ALL)
    assert main(["study", "run", *PLACE]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "toy: 7 of 7 finished"
    assert not (study.root / "runs" / "studies" / "toy" / "nodes").exists()


def test_what_stages_share_is_prepared_before_the_first_begins(study: ToyStudy) -> None:
    finish(study, *ALL)
    assert main(["study", "run", *PLACE]) == 0
    prepared = [path.name for path in (study.root / "runs" / "prepared").glob("*-*") if path.is_dir()]
    assert len(prepared) == len({name.partition("-")[2] for name in prepared}) >= 1


def test_status_says_of_each_node_and_arm_how_it_stands(study: ToyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    finish(study, "common.yaml", "sums_base.yaml")
    assert main(["study", "status", *PLACE, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    plan = make_study_plan(study.file, site="site.yaml")
    states = {node["name"]: node["state"] for node in said["nodes"]}
    assert [states[stage.stage_id] for stage in plan.stages] == [
        "finished",
        "finished",
        "waiting",
        "waiting",
        "waiting",
    ]
    assert [[stage["state"] for stage in arm["chains"][0]] for arm in said["arms"]] == [
        ["finished", "finished", "waiting"],
        ["finished", "waiting", "waiting"],
    ]
    assert said["runner"] is None


def test_a_run_of_fewer_arms_and_seeds_takes_nothing_out_of_what_is_known_of_the_study(
    study: ToyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(study, *ALL, seeds=2)
    record = study.root / "runs" / "studies" / "toy" / "study.json"
    assert main(["study", "run", *PLACE, "--seeds", "2"]) == 0
    whole = json.loads(record.read_text())
    assert (len(whole["arms"]), len(whole["stages"])) == (2, 10)
    assert main(["study", "run", *PLACE, "--seeds", "1", "--arms", "sums-sft"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "toy: 4 of 4 finished"
    assert json.loads(record.read_text()) == whole
    assert main(["study", "status", *PLACE]) == 0
    assert "toy: 14 of 14 finished" in capsys.readouterr().out


def test_status_of_a_file_that_has_changed_shows_it_and_names_what_it_has_no_more(
    study: ToyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(study, *ALL)
    assert main(["study", "run", *PLACE]) == 0
    arm = study.root / "arms" / "words-sft.yaml"
    arm.write_text(arm.read_text().replace("arm: words-sft", "arm: verbs-sft"))
    sums = study.root / "sums_base.yaml"
    mixed = "[{source: sums.yaml, share: 0.75}, {source: words.yaml, share: 0.25}]"
    sums.write_text(sums.read_text().replace("[{source: sums.yaml, share: 1}]", mixed))
    record = study.root / "runs" / "studies" / "toy" / "study.json"
    capsys.readouterr()
    assert main(["study", "status", *PLACE]) == 0
    captured = capsys.readouterr()
    assert "toy: 4 of 7 finished, 3 waiting" in captured.out
    assert captured.err == (
        "WARNING: study.yaml: it has changed since its last run; arms that are no longer in it: words-sft; arms that "
        f"have other stages now: sums-sft; as it was run: megatron-ext study status {record}\n"
    )
    assert main(["study", "status", "runs/studies/toy/study.json"]) == 0
    assert "toy: 7 of 7 finished" in capsys.readouterr().out


def test_status_and_cancel_take_the_plan_that_a_run_left_from_any_folder(
    study: ToyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(study, *ALL)
    assert main(["study", "run", *PLACE]) == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    record = "study/runs/studies/toy/study.json"
    assert main(["study", "status", record]) == 0
    assert "toy: 7 of 7 finished" in capsys.readouterr().out
    assert main(["study", "cancel", record]) == 0
    assert capsys.readouterr().out == "nothing of it runs\n"


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [
        ("run", [], "error: runs/study.json: this is the plan of a study; name the study file that it was made of\n"),
        ("status", [], "error: runs/study.json: damaged, or of another version; plan the study again\n"),
        ("cancel", [], "error: runs/study.json: damaged, or of another version; plan the study again\n"),
        (
            "status",
            ["--site", "site.yaml"],
            "error: runs/study.json is planned; --seeds, --arms and --site are of a study file.\n",
        ),
    ],
)
def test_a_plan_that_cannot_be_taken_is_refused_in_one_sentence(
    study: ToyStudy, capsys: pytest.CaptureFixture[str], verb: str, options: list[str], said: str
) -> None:
    (study.root / "runs").mkdir(exist_ok=True)
    (study.root / "runs" / "study.json").write_text("{}")
    assert main(["study", verb, "runs/study.json", *options]) in (2, 3)
    assert capsys.readouterr().err == said


def test_status_for_people_ends_with_the_counts(study: ToyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    finish(study, "common.yaml")
    assert main(["study", "status", *PLACE]) == 0
    output = capsys.readouterr().out
    assert "common done  >  sums_base -  >  sft -, judged 0/1" in output
    assert output.rstrip().endswith("toy: 1 of 7 finished, 6 waiting; no run is at work, so nothing more begins")


def test_status_tells_what_ended_before_the_run_at_work_from_what_ended_in_it(
    study: ToyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    common = make_study_plan(study.file, site="site.yaml").stages[0].stage_id
    log = study.root / "runs" / "studies" / "toy" / "nodes" / common / "attempt_1.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: the disk is full\nstudy: exit code 4\n")
    with subprocess.Popen(["true"], stdout=subprocess.DEVNULL) as child:
        write_launched(log.parent, Launched("local", 1, 0.0, handle=identity_of(child.pid)))
    os.utime(log, (1, 1))
    with only_runner(log.parents[2]):
        for ended, said in ((1, "; 1 failed or stopped before it, and what is in this run begins again"), (2**32, "")):
            os.utime(log, (ended, ended))
            assert main(["study", "status", *PLACE]) == 0
            output = capsys.readouterr().out.rstrip()
            assert output.endswith(f"toy: 0 of 7 finished, 1 failed, 6 blocked; run by process {os.getpid()}{said}")


def test_status_of_a_plan_of_another_version_shows_what_the_study_says_now(
    study: ToyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study.root / "runs" / "studies" / "toy"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text("{}")
    assert main(["study", "status", *PLACE]) == 0
    captured = capsys.readouterr()
    assert "of another version" in captured.err
    assert "toy: 0 of 7 finished, 7 waiting" in captured.out


def test_watching_for_programs_is_refused(study: ToyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "status", *PLACE, "--watch", "--json"]) == 2
    assert "--watch is for people, --json for programs" in capsys.readouterr().err


def test_cancel_of_a_study_of_which_nothing_runs_says_so(study: ToyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "cancel", *PLACE]) == 0
    assert capsys.readouterr().out == "nothing of it runs\n"


def test_a_watch_over_hanging_ranks_that_nothing_here_can_keep_is_refused(
    study: ToyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia_resiliency_ext", None)  # as where it is not installed
    with (study.root / "site.yaml").open("a") as site:
        site.write("slurm: {time: '60', hang_s: 900}\n")
    assert main(["study", "run", *PLACE, "--launcher", "slurm", "--dry-run"]) == 4
    said = capsys.readouterr().err
    assert "slurm.hang_s 900: nvidia-resiliency-ext is not installed. Run `pip install 'nvidia-resiliency" in said
    assert not (study.root / "runs" / "studies").exists()
