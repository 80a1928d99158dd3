"""kill -9 of a study of real stages, at random moments: of its run, of its stages, of both.

What finishes in the end is that of an undisturbed run: its weights, and stage.json byte by byte, for that holds nothing
of time, place or how often a run went on. Of results.json the tasks are compared: the rest says when, how long and by
which command. Behind each kill the status is asked, and every node is as it says.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_ext.training.file_list import checkpoints_of, read_file_list
from tests.support.toy_project import environment
from tests.support.toy_study import ToyStudy, make_toy_study

pytestmark = [pytest.mark.slow, pytest.mark.system]

PATIENCE_S = 1_800
KILLS = [("run", "whenever"), ("both", "whenever"), ("stages", "in training"), ("both", "in training")]


@dataclass(frozen=True)
class Place:
    """A study and a run root."""

    study: ToyStudy
    run_root: Path

    def command(self, verb: str, *options: str) -> list[str]:
        """A command on the study."""
        place = ["study.yaml", "--site", "site.yaml", "--run-root", str(self.run_root)]
        return [sys.executable, "-m", "megatron_ext", "study", verb, *place, *options]

    def start(self) -> subprocess.Popen[bytes]:
        """A run of it."""
        log = (self.run_root.parent / "run.log").open("ab")
        command = self.command("run", "--workers", "2")
        with log:
            return subprocess.Popen(
                command, cwd=self.study.root, env=environment(), stdout=log, stderr=log, start_new_session=True
            )

    def status(self) -> dict[str, str]:
        """The state of each node, as the command says it."""
        done = subprocess.run(
            self.command("status", "--json"), cwd=self.study.root, env=environment(), capture_output=True, check=True
        )
        return {node["name"]: node["state"] for node in json.loads(done.stdout)["nodes"]}

    def at_work(self, *, is_starting: bool = False) -> dict[str, psutil.Process]:
        """The processes of its nodes, by name, asked of the machine itself; also of those about to start, if asked."""
        found = {}
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if str(self.run_root) not in " ".join(words) or process.info["status"] == psutil.STATUS_ZOMBIE:
                continue
            if is_starting and "megatron_ext.study.local_child" in words:
                found[Path(words[-1]).name] = process
            elif "evaluate" in words:
                stage, folder = words[words.index("evaluate") + 1], words[words.index("--name") + 1]
                found[f"{Path(stage).name}.{folder}"] = process
            elif "megatron_ext.run" in words:
                found[self.stage_of(words)] = process
        return found

    def stage_of(self, words: list[str]) -> str:
        """The stage that a command trains."""
        recipe = words[words.index("megatron_ext.run") + 1]
        parent = next((word.partition("=")[2] for word in words if word.startswith(("continue=", "init_from="))), None)
        plan = json.loads((self.run_root / "studies" / "toy" / "study.json").read_text())
        return next(
            stage["stage_id"] for stage in plan["stages"] if (stage["recipe"], stage["parent"]) == (recipe, parent)
        )

    def ends(self) -> dict[str, bytes]:
        """stage.json of each stage."""
        return {file.parent.name: file.read_bytes() for file in (self.run_root / "stages").glob("*/stage.json")}

    def wait_for_step(self, study: subprocess.Popen[bytes], step: int) -> None:
        """Returns when a stage has trained to a step, or on from where an earlier kill met it, or the study ends."""
        before, deadline = self.steps(), time.monotonic() + PATIENCE_S
        while study.poll() is None:
            if any(steps >= step and steps != before.get(stage) for stage, steps in self.steps().items()):
                return
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def steps(self) -> dict[str, int]:
        """How far each unfinished stage is."""
        files = (self.run_root / "stages").glob("*/metrics.jsonl")
        unfinished = [file for file in files if not (file.parent / "stage.json").exists()]
        return {file.parent.name: file.read_text().count("\n") for file in unfinished}

    def done(self) -> set[str]:
        """Names of the nodes whose last file is there."""
        evaluations = (self.run_root / "stages").glob("*/evaluations/*/results.json")
        return {*self.ends(), *(f"{file.parents[2].name}.{file.parent.name}" for file in evaluations)}

    def weights(self) -> dict[str, dict[str, str]]:
        """Hashes of the files with the last weights of each stage, its optimizer and its random states."""
        ends = {
            name: self.run_root / "stages" / name / json.loads(end)["checkpoint"] for name, end in self.ends().items()
        }
        return {
            name: {file: facts["sha256"] for file, facts in read_file_list(end).items() if file.endswith(".distcp")}
            for name, end in ends.items()
        }

    def saved(self, stages: Iterable[str]) -> set[tuple[str, str]]:
        """Newest checkpoint of each unfinished one of some stages that has any."""
        unfinished = {*stages} - self.done()
        found = {name: checkpoints_of(self.run_root / "stages" / name / "checkpoints") for name in unfinished}
        return {(name, checkpoints[-1].name) for name, checkpoints in found.items() if checkpoints}

    def printed(self, node: str) -> str:
        """What all attempts of a node have printed."""
        logs = (self.run_root / "studies" / "toy" / "nodes" / node).glob("attempt_*.log")
        return "".join(log.read_text() for log in logs)

    def results(self) -> dict[str, Any]:
        """The tasks of each evaluation."""
        files = (self.run_root / "stages").glob("*/evaluations/*/results.json")
        return {file.parents[2].name: json.loads(file.read_text())["tasks"] for file in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    study = make_toy_study(tmp_path_factory.mktemp("study"))
    common = study.root / "common.yaml"  # 20 steps instead of 6, so that kills meet stages between two of them
    common.write_text(common.read_text().replace("{tokens: 3_072}", "{tokens: 10_240}").replace("6_144", "20_480"))
    place = Place(study, tmp_path_factory.mktemp("undisturbed") / "runs")
    assert place.start().wait(PATIENCE_S) == 0
    assert (len(place.ends()), len(place.results())) == (5, 2)
    return place


@pytest.fixture
def place(undisturbed: Place, tmp_path: Path) -> Iterator[Place]:
    made = Place(undisturbed.study, tmp_path / "runs")
    yield made
    for process in made.at_work(is_starting=True).values():
        process.kill()


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_it_ends_as_if_nobody_had_disturbed_it(seed: int, place: Place, undisturbed: Place) -> None:
    choose = random.Random(seed)
    met: set[str] = set()
    saved: set[tuple[str, str]] = set()
    for victim, moment in choose.sample(KILLS, len(KILLS)):
        study = place.start()
        if moment == "in training":
            place.wait_for_step(study, choose.randint(3, 12))
        else:
            time.sleep(choose.uniform(4, 20))
        at_work = place.at_work().keys()
        met |= at_work
        if victim != "stages":
            study.kill()
            study.wait()
        if victim != "run":
            for process in place.at_work(is_starting=True).values():
                process.kill()
            time.sleep(0.5)
            saved |= place.saved(at_work)
        if victim == "stages":
            assert study.wait(PATIENCE_S) in (0, 5)
        require_true_status(place, killed=set() if victim == "run" else {*at_work})
    assert met  # so the kills met nodes at work,
    assert saved  # and some that had saved something
    assert place.start().wait(PATIENCE_S) == 0, (place.run_root.parent / "run.log").read_text()
    assert place.ends() == undisturbed.ends()
    assert place.results() == undisturbed.results()
    assert place.weights() == undisturbed.weights()
    assert set(place.status().values()) == {"finished"}
    for stage, checkpoint in saved:  # no work is lost that was saved
        assert f"goes on at step {checkpoint.removeprefix('step_')} " in place.printed(stage)


def require_true_status(place: Place, *, killed: set[str]) -> None:
    """The command says of each node what the machine says; no run is at work, so nothing begins meanwhile."""
    before, done_before = place.at_work(is_starting=True).keys(), place.done()
    states = place.status()
    running, finished, failed = (
        {name for name, state in states.items() if state == said} for said in ("running", "finished", "failed")
    )
    assert place.at_work().keys() - finished <= running <= before  # some may have ended between the two looks
    assert done_before <= finished <= place.done()
    assert killed <= finished | failed
