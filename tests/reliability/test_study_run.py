"""kill -9 of a study of real stages, at random moments: of its run, of its stages, of both.

What finishes in the end is that of an undisturbed run. stage.json is compared byte by byte: it holds nothing of time,
place or how often a run went on. Of results.json the tasks are: the rest says when, how long and by which command.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.toy_project import environment
from tests.support.toy_study import ToyStudy, make_toy_study

pytestmark = [pytest.mark.slow, pytest.mark.system]

PATIENCE_S = 1_800


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
                found[f"{Path(words[words.index('evaluate') + 1]).name}.{words[-1]}"] = process
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

    def results(self) -> dict[str, Any]:
        """The tasks of each evaluation."""
        files = (self.run_root / "stages").glob("*/evaluations/*/results.json")
        return {file.parents[2].name: json.loads(file.read_text())["tasks"] for file in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(make_toy_study(tmp_path_factory.mktemp("study")), tmp_path_factory.mktemp("undisturbed") / "runs")
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
    for victim in choose.sample(["run", "stages", "both", "both"], 4):
        study = place.start()
        time.sleep(choose.uniform(4, 20))
        met |= place.at_work().keys()
        if victim != "stages":
            study.kill()
            study.wait()
        if victim != "run":
            for process in place.at_work(is_starting=True).values():
                process.kill()
            time.sleep(0.5)
        if victim == "stages":
            assert study.wait(PATIENCE_S) in (0, 5)
        running = {name for name, state in place.status().items() if state == "running"}
        assert place.at_work().keys() <= running  # what ends between the two looks may only be missing on the left
        if victim == "both":
            assert running == set()
    assert met  # so the kills met nodes at work
    assert place.start().wait(PATIENCE_S) == 0, (place.run_root.parent / "run.log").read_text()
    assert place.ends() == undisturbed.ends()
    assert place.results() == undisturbed.results()
    assert set(place.status().values()) == {"finished"}
