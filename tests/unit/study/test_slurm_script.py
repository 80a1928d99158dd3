"""The script of an array: what it asks sbatch for, what its tasks run, and how ranks on several nodes meet."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from megatron_ext.recipe.site_schema import SlurmJob, SlurmRecipe
from megatron_ext.study.launcher import Task
from megatron_ext.study.slurm_script import JobSize, job_size, write_script
from megatron_ext.study.study_plan import EvaluationNode
from megatron_ext.study.tasks import make_task
from tests.support.stand_in_study import stand_in_plan


def stage_task(run_root: Path, *, world_size: int = 1, letter: str = "a") -> Task:
    plan = stand_in_plan(run_root)
    stage = plan.stage(f"pretrain-{letter}").model_copy(update={"world_size": world_size, "overrides": ("seed=1 2",)})
    return make_task(plan, stage, run_root)


def evaluation_task(run_root: Path) -> Task:
    plan = stand_in_plan(run_root)
    node = EvaluationNode(
        node_id="pretrain-a/held-1", stage_id="pretrain-a", suite="held.yaml", suite_name="held", folder="held-1"
    )
    return make_task(plan, node, run_root)


def script(run_root: Path, slurm: SlurmRecipe, *tasks: Task) -> str:
    file = run_root / "a node.sbatch"
    run_root.mkdir(exist_ok=True)
    write_script(file, "NAME", dict(enumerate(tasks)), slurm, run_root=run_root)
    return file.read_text()


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def printed(text: str, index: int, what: str, **environment: str) -> str:
    """What a bash prints that has read the script's cases and variables, and none of its work."""
    head = text.partition("\njob=")[0]
    done = subprocess.run(
        ["bash", "-euc", f"{head}\n{what}"],
        env={"SLURM_ARRAY_TASK_ID": str(index), "PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sbatch_is_asked_for_what_the_site_and_the_layout_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    slurm = SlurmRecipe(
        account="me",
        partition="gpu",
        time="1-0",
        gpus_per_node=8,
        cpus_per_node=96,
        save_s=600,
        options=("mem=0", "comment=two words"),
    )
    task = stage_task(tmp_path, world_size=16)
    assert directives(script(tmp_path, slurm, task, task)) == [
        "--job-name=NAME",
        "--array=0-1",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=96",
        "--time=1-0",
        "--partition=gpu",
        "--account=me",
        "--mem=0",
        '--comment="two words"',
        "--signal=B:USR1@600",
        "--requeue",
        "--export=ALL",
        "--kill-on-invalid-dep=yes",
        f"--chdir={tmp_path}",
        "--open-mode=append",
        f"--output={tmp_path}/%A_%a.log",
    ]


@pytest.mark.parametrize(
    ("slurm", "world_size", "cpus"),
    [
        (SlurmRecipe(gpus_per_node=8, cpus_per_node=96), 8, "96"),
        (SlurmRecipe(gpus_per_node=8, cpus_per_node=96), 1, "12"),
        (SlurmRecipe(gpus_per_node=8, cpus_per_node=96), 12, "72"),  # six of eight on each of two nodes
        (SlurmRecipe(gpus_per_node=8, cpus_per_node=100), 1, "13"),
        (SlurmRecipe(gpus_per_node=8, cpus_per_node=96, nodes=2), 1, "96"),
        (SlurmRecipe(cpus_per_node=4), 1, "4"),
    ],
)
def test_a_job_that_fills_no_node_asks_for_its_share_of_the_cpus(
    slurm: SlurmRecipe, world_size: int, cpus: str, tmp_path: Path
) -> None:
    asked = directives(script(tmp_path, slurm, stage_task(tmp_path, world_size=world_size)))
    assert [line.partition("=")[2] for line in asked if line.startswith("--cpus-per-task=")] == [cpus]


def test_a_percent_in_a_path_is_no_pattern(tmp_path: Path) -> None:
    root = tmp_path / "100%"
    assert f"--output={tmp_path}/100%%/%A_%a.log" in directives(script(root, SlurmRecipe(), stage_task(root)))


@pytest.mark.parametrize(
    ("slurm", "world_size", "place"),
    [
        (SlurmRecipe(gpus_per_node=8), 1, JobSize(1, 1)),
        (SlurmRecipe(gpus_per_node=8), 8, JobSize(1, 8)),
        (SlurmRecipe(gpus_per_node=8), 12, JobSize(2, 6)),
        (SlurmRecipe(gpus_per_node=8), 32, JobSize(4, 8)),
        (SlurmRecipe(gpus_per_node=8, pretrain=SlurmJob(nodes=3)), 4, JobSize(3, 8)),
        (SlurmRecipe(gpus_per_node=8, sft=SlurmJob(nodes=3)), 4, JobSize(1, 4)),
        (SlurmRecipe(ranks_per_node=2, nodes=2), 1, JobSize(2, 2)),
    ],
)
def test_ranks_go_on_as_few_nodes_as_the_layout_needs_or_on_those_of_the_site(
    slurm: SlurmRecipe, world_size: int, place: JobSize, tmp_path: Path
) -> None:
    assert job_size(stage_task(tmp_path, world_size=world_size), slurm) == place
    assert place.ranks >= world_size


def test_each_task_of_an_array_runs_its_own_node(tmp_path: Path) -> None:
    text = script(tmp_path, SlurmRecipe(), stage_task(tmp_path), evaluation_task(tmp_path))
    words = printed(text, 0, 'printf "%s|" "${command[@]}"')
    assert words == f"-m|megatron_ext.run|a.yaml|--set|seed=1 2|--run-root|{tmp_path}|"
    assert printed(text, 0, 'echo "$finished"') == f"{tmp_path}/stages/pretrain-a/stage.json\n"
    assert printed(text, 1, 'echo "$folder"') == f"{tmp_path}/studies/stand_in/nodes/pretrain-a.held-1\n"
    assert printed(text, 1, 'echo "$finished"').endswith("/evaluations/held-1/results.json\n")


def test_what_was_saved_are_checkpoints_whole_ones_only(tmp_path: Path) -> None:
    checkpoints = tmp_path / "stages" / "pretrain-a" / "checkpoints"
    (checkpoints / "step_2").mkdir(parents=True)
    (checkpoints / ".writing_step_4").mkdir()
    text = script(tmp_path, SlurmRecipe(), stage_task(tmp_path))
    lines = printed(text, 0, "saved").splitlines()
    assert [line.rpartition("/")[2] for line in lines] == ["step_2"]


def test_one_rank_is_python_itself_and_several_are_torchrun_on_each_node(tmp_path: Path) -> None:
    echo = 'srun() { printf "%s|" "$@"; }; run'
    one = printed(script(tmp_path, SlurmRecipe(python="py"), evaluation_task(tmp_path)), 0, echo)
    assert one.startswith("--nodes=1|--ntasks=1|--kill-on-bad-exit=1|py|-m|megatron_ext|evaluate|")
    slurm = SlurmRecipe(
        ranks_per_node=8,
        nodes=2,
        python="py",
        master_port=29_500,
        srun_options=("container-image=/a b.sqsh",),
        container="apptainer exec --nv /x.sif",
    )
    hosts = 'scontrol() { printf "n7\\nn8\\n"; }\n'
    text = script(tmp_path, slurm, stage_task(tmp_path)).replace("\nfirst=", f"\n{hosts}first=", 1)
    many = printed(text, 0, echo, SLURM_JOB_NODELIST="n[7-8]", SLURM_CPUS_PER_TASK="96")
    assert many.startswith(
        "--nodes=2|--ntasks=2|--kill-on-bad-exit=1|--container-image=/a b.sqsh|--cpus-per-task=96|bash|-c|"
        'PET_NODE_RANK=$SLURM_NODEID exec "$@"|-|apptainer|exec|--nv|/x.sif|py|-m|torch.distributed.run|--nnodes=2|'
        "--nproc-per-node=8|--master-addr=n7|--master-port=29500|-m|megatron_ext.run|a.yaml|"
    )


def test_a_port_is_made_of_the_jobs_number_unless_the_site_says_one(tmp_path: Path) -> None:
    text = script(tmp_path, SlurmRecipe(ranks_per_node=2, nodes=1), stage_task(tmp_path))
    text = text.replace("\nfirst=", "\nscontrol() { echo n7; }\nfirst=", 1)
    ports = [printed(text, 0, 'echo "$port"', SLURM_JOB_NODELIST="n7", SLURM_JOB_ID=job) for job in ("41", "42")]
    assert ports == ["10041\n", "10042\n"]


def test_variables_modules_and_lines_come_before_the_ranks(tmp_path: Path) -> None:
    slurm = SlurmRecipe(
        save_s=77, environment=("A=two words", "B="), modules=("cuda/12.8",), setup=("C=$A$B; export C",)
    )
    what = 'printf "%s|" "$A" "$B" "$C" "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT"'
    text = script(tmp_path, slurm, stage_task(tmp_path)).replace(
        "\nexport TORCH", '\nmodule() { echo "module $*"; }\nexport TORCH', 1
    )
    assert printed(text, 0, what) == "module load cuda/12.8\ntwo words||two words|77|"


def test_a_start_is_remembered_as_json_whatever_the_path(tmp_path: Path) -> None:
    root = tmp_path / 'it\'s "here" @AT@'
    text = script(root, SlurmRecipe(), stage_task(root))
    made = printed(text, 0, 'echo "$launched"').replace("@ATTEMPT@", "3", 1)
    file = str(root / "a node.sbatch")
    assert json.loads(made.replace('"at": @AT@', '"at": 5')) == {
        "kind": "slurm",
        "attempt": 3,
        "at": 5,
        "command": ["sbatch", file],
        "handle": {"job": "@JOB@", "log": f"{root}/@JOB@.log"},
    }


def test_a_start_is_remembered_whatever_who_submitted_it_is_writing_in_this_moment(tmp_path: Path) -> None:
    """Its unfinished file is there when the job begins and gone before the job renames its own."""
    folder = tmp_path / "studies/stand_in/nodes/pretrain-a"
    folder.mkdir(parents=True)
    (folder / "launch.json.partial").write_text("half")
    text = script(tmp_path, SlurmRecipe(), stage_task(tmp_path))
    start, _, _ = text.partition("\nlog=")
    renames = 'mv() { rm "$folder/launch.json.partial"; command mv "$@"; }'
    done = subprocess.run(
        ["bash", "-uc", f"{renames}\n{start}"],
        env={"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "12", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((folder / "launch.json").read_text())["handle"]["job"] == "12_0"
    assert [file.name for file in folder.iterdir()] == ["launch.json"]


def test_the_script_is_bash_and_says_what_it_is_for(tmp_path: Path) -> None:
    text = script(tmp_path, SlurmRecipe(ranks_per_node=4), stage_task(tmp_path, world_size=4), stage_task(tmp_path))
    by_hand = f"sbatch {shlex.quote(f'{tmp_path}/a node.sbatch')}"
    assert text.splitlines()[1] == f"# a.yaml, 2 seeds; written by megatron-ext study run. By hand: {by_hand}"
    assert script(tmp_path, SlurmRecipe(), stage_task(tmp_path)).splitlines()[1].startswith("# a.yaml; written by")
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""


def test_a_watch_over_hanging_ranks_takes_the_place_of_torchrun(tmp_path: Path) -> None:
    slurm = SlurmRecipe(gpus_per_node=8, pretrain=SlurmJob(nodes=2), hang_s=900, python="python")
    text = script(tmp_path, slurm, stage_task(tmp_path, world_size=16))
    assert "torch.distributed.run" not in text
    assert "python -m nvidia_resiliency_ext.fault_tolerance.launcher" in text.replace('"$python"', "python")
    assert '--rdzv-backend=c10d --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID"' in text
    assert "--ft-rank-heartbeat-timeout=900 --ft-initial-rank-heartbeat-timeout=1800" in text
    assert "--master-addr" not in text
    alone = script(tmp_path, SlurmRecipe(hang_s=900), stage_task(tmp_path))
    assert "nvidia_resiliency_ext" in alone  # a job of one rank can hang too
