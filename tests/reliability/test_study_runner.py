"""Who begins a stage of a study, and how often, whatever ends or is killed; stages are stand-ins that last a second.

a ─┬─ b ── c
   └─ d
e             fails while RUN_ROOT/broken is there
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from data_tools.errors import UsageError
from megatron_ext.study.cancel import cancel_study
from megatron_ext.study.launcher import study_folder
from megatron_ext.study.launchers import finders
from megatron_ext.study.state import NodeState, node_states
from tests.support.stand_in_study import PARENTS, STEPS, stage_id, stand_in_plan
from tests.support.toy_project import REPOSITORY, environment


def kills[Test: Callable[..., None]](test: Test) -> Test:
    """Marks a test that kills or stops processes."""
    marked: Test = pytest.mark.slow(pytest.mark.system(test))
    return marked


STAGE = "tests.support.stand_in_stage"
STARTING = "megatron_ext.study.local_child"
PATIENCE_S = 600


@dataclass
class StandIn:
    """A run root and the processes that a test started there."""

    run_root: Path
    started: list[subprocess.Popen[str]]

    @property
    def folder(self) -> Path:
        """Of the study."""
        return study_folder(self.run_root, "stand_in")

    def start(self, *, workers: int = 2, step_s: float = 0.1) -> subprocess.Popen[str]:
        """A run of the study."""
        return self._popen("tests.support.stand_in_study", self.run_root, "--workers", workers, "--step-s", step_s)

    def start_stage(self, letter: str) -> subprocess.Popen[str]:
        """A run of one stage, by hand."""
        return self._popen(STAGE, self.stage(letter), "--steps", STEPS, "--waits-while", self.hold)

    @property
    def hold(self) -> Path:
        """While it is there, no stage comes further than a step."""
        return self.run_root / "hold"

    def _popen(self, module: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=REPOSITORY,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def listen(self, study: subprocess.Popen[str], words: str) -> None:
        """Returns when a run has said something."""
        assert study.stdout is not None
        said = []
        for line in study.stdout:
            said.append(line)
            if words in line:
                return
        raise AssertionError("".join(said))

    def run(self, *, workers: int = 2, step_s: float = 0.02) -> tuple[int, str]:
        """A run of the study to its end: exit code and output."""
        process = self.start(workers=workers, step_s=step_s)
        output, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, output

    def stage(self, letter: str) -> Path:
        """The folder of a stage."""
        return self.run_root / "stages" / stage_id(letter)

    def stages_at_work(self) -> set[str]:
        """Letters of the stages of which a process lives, asked of the machine itself."""
        letters = set()
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            mine = [word for word in words if word.startswith(f"{self.run_root}/stages/")]
            if STAGE in words and mine and process.info["status"] != psutil.STATUS_ZOMBIE:
                letters.add(mine[0][-1])
        return letters

    def kill_stages(self) -> None:
        """kill -9 of all of them, also of those that wait to be written down."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            is_mine = any(word.startswith(f"{self.run_root}/") for word in words)
            if is_mine and {STAGE, STARTING} & {*words}:
                process.kill()

    def states(self) -> dict[str, NodeState]:
        """Of each stage, by its letter."""
        found = node_states(stand_in_plan(self.run_root), self.run_root, finders(self.run_root))
        return {letter: found[stage_id(letter)] for letter in PARENTS}

    def wait_for(self, letter: str, state: str) -> None:
        """Returns when a stage is in a state."""
        deadline = time.monotonic() + PATIENCE_S
        while self.states()[letter].state != state:
            assert time.monotonic() < deadline, self.states()
            time.sleep(0.02)

    def wait_until_begun(self, *letters: str) -> None:
        """Returns when stages listen to signals."""
        deadline = time.monotonic() + PATIENCE_S
        while not {f"{stage_id(letter)} begin" for letter in letters} <= set(self.diary()):
            assert time.monotonic() < deadline, self.diary()
            time.sleep(0.02)

    def wait_until_at_work(self, study: subprocess.Popen[str]) -> bool:
        """Returns when a stage has begun and not ended; whether there was one before the run ended."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.stages_at_work() or not self.is_begun():
            assert time.monotonic() < deadline, self.diary()
            if study.poll() is not None:
                return False
            time.sleep(0.02)
        return True

    def is_begun(self) -> bool:
        """Whether of some stage that is at work the newest line of the diary is its beginning."""
        newest = {line.split()[0][-1]: line for line in self.diary()}
        return any(newest.get(letter, "").endswith("begin") for letter in self.stages_at_work())

    def wait_for_child(self, node: Path) -> psutil.Process:
        """The process of a node that waits to be written down."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for process in psutil.process_iter(["cmdline"]):
                if (process.info["cmdline"] or [])[-2:] == [STARTING, str(node)]:
                    return process
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ends(self) -> dict[str, bytes]:
        """What the finished stages say of themselves."""
        return {file.parent.name: file.read_bytes() for file in (self.run_root / "stages").glob("*/stage.json")}

    def diary(self) -> list[str]:
        """Starts and ends of stages, in order."""
        file = self.run_root / "stages" / "diary.txt"
        return file.read_text().splitlines() if file.is_file() else []

    def most_at_once(self) -> int:
        """How many stages were at work together."""
        at_work, most = 0, 0
        for line in self.diary():
            at_work += 1 if line.endswith("begin") else -1
            most = max(most, at_work)
        return most


@pytest.fixture
def place(tmp_path: Path) -> Iterator[StandIn]:
    made = StandIn(tmp_path / "runs", [])
    made.run_root.mkdir()
    yield made
    for process in made.started:
        process.kill()
        process.wait()
    made.kill_stages()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """stage.json of each stage of a run that nobody disturbs."""
    made = StandIn(tmp_path_factory.mktemp("undisturbed"), [])
    code, output = made.run()
    assert code == 0, output
    assert len(made.ends()) == len(PARENTS)
    return made.ends()


def test_a_failed_stage_stops_no_other_and_the_next_run_begins_it_again(
    place: StandIn, undisturbed: dict[str, bytes]
) -> None:
    (place.run_root / "broken").touch()
    code, output = place.run()
    log = place.folder / "nodes" / stage_id("e") / "attempt_1.log"
    assert code == 5
    assert output.endswith(
        "error: stand_in: 4 of 5 finished, 1 failed\n"
        f"  failed pretrain-e: exit code 5: the loss is nan\n    {log}\n"
        "  Run the study again to go on; what is finished stays.\n"
    )
    assert "the loss is nan" in log.read_text()
    (place.run_root / "broken").unlink()
    code, output = place.run()
    assert code == 0, output
    assert place.ends() == undisturbed
    assert place.diary().count("pretrain-a begin") == 1


def test_what_stands_behind_a_failed_stage_is_listed_and_not_begun(place: StandIn) -> None:
    place.stage("a").mkdir(parents=True)
    (place.stage("a") / "saved.json").write_text("no JSON")  # a cannot go on from it
    code, output = place.run()
    assert code == 5
    assert "blocked behind them: pretrain-b, pretrain-c, pretrain-d" in output
    assert place.states()["c"].state == "blocked"
    assert "pretrain-b begin" not in place.diary()


def test_a_second_run_of_the_same_study_is_refused_and_the_first_goes_on(
    place: StandIn, undisturbed: dict[str, bytes]
) -> None:
    place.hold.touch()
    first = place.start()
    place.listen(first, "running   pretrain-a")
    code, output = place.run()
    assert code == 4
    assert f"process {first.pid} on " in output
    assert "runs this study already" in output
    place.hold.unlink()
    assert first.wait(PATIENCE_S) == 0
    assert place.ends() == undisturbed


def test_one_worker_runs_one_stage_at_a_time(place: StandIn) -> None:
    assert place.run(workers=1)[0] == 0
    assert place.most_at_once() == 1


def test_two_workers_run_two_stages_at_once_and_never_three(place: StandIn, undisturbed: dict[str, bytes]) -> None:
    place.stage("a").mkdir(parents=True)
    (place.stage("a") / "stage.json").write_bytes(undisturbed[stage_id("a")])  # so b, d and e could begin
    place.hold.touch()
    study = place.start(workers=2)
    place.wait_until_begun("b", "d")  # neither ends before the other has begun
    assert place.states()["e"].state == "waiting"
    place.hold.unlink()
    assert study.wait(PATIENCE_S) == 0
    assert place.most_at_once() == 2


def test_a_stage_that_is_trained_by_hand_is_waited_for(place: StandIn, undisturbed: dict[str, bytes]) -> None:
    place.stage("e").mkdir(parents=True)
    (place.stage("e") / "stage.json").write_bytes(undisturbed[stage_id("e")])  # nothing else is there to wait for
    place.hold.touch()
    by_hand = place.start_stage("a")
    place.wait_until_begun("a")
    study = place.start()
    place.listen(study, "running   pretrain-a, begun by another command than this study's")
    place.hold.unlink()
    assert study.wait(PATIENCE_S) == 0
    assert by_hand.wait(PATIENCE_S) == 0
    assert place.diary().count("pretrain-a begin") == 1
    assert place.ends() == undisturbed


@kills
def test_a_stage_that_was_trained_by_hand_and_stopped_is_gone_on_with(
    place: StandIn, undisturbed: dict[str, bytes]
) -> None:
    place.hold.touch()
    by_hand = place.start_stage("a")
    place.wait_until_begun("a")
    study = place.start()
    place.listen(study, "begun by another command")
    by_hand.send_signal(signal.SIGTERM)
    assert by_hand.wait(PATIENCE_S) == 5
    place.hold.unlink()
    assert study.wait(PATIENCE_S) == 0
    assert [line for line in place.diary() if "-a" in line] == [
        "pretrain-a begin",
        "pretrain-a end 5",
        "pretrain-a begin",
        "pretrain-a end 0",
    ]
    assert place.ends() == undisturbed


@kills
def test_after_kill_9_of_the_run_the_next_one_waits_for_what_still_runs_and_counts_it_as_a_worker(
    place: StandIn, undisturbed: dict[str, bytes]
) -> None:
    place.hold.touch()
    first = place.start(workers=1)
    place.wait_until_begun("a")
    first.kill()
    first.wait()
    assert place.states()["a"].state == "running"
    second = place.start(workers=1)
    place.listen(second, "running   pretrain-a, begun by an earlier run: waited for")
    time.sleep(1)
    place.hold.unlink()
    assert second.wait(PATIENCE_S) == 0
    assert place.diary()[:2] == ["pretrain-a begin", "pretrain-a end 0"]
    assert place.most_at_once() == 1
    assert place.ends() == undisturbed


@kills
def test_ctrl_c_lets_stages_save_and_the_next_run_goes_on_with_them(
    place: StandIn, undisturbed: dict[str, bytes]
) -> None:
    place.hold.touch()
    study = place.start()
    place.wait_until_begun("a", "e")
    study.send_signal(signal.SIGINT)
    output, _ = study.communicate(timeout=PATIENCE_S)
    assert study.returncode == 5
    assert "stopped by SIGINT; 0 of 5 finished, 2 stopped, 3 waiting" in output
    assert place.states()["a"].state == "stopped"
    assert json.loads((place.stage("a") / "saved.json").read_bytes())[0] == 1
    place.hold.unlink()
    assert place.run()[0] == 0
    assert place.ends() == undisturbed


@kills
def test_a_second_ctrl_c_ends_them_at_once(place: StandIn) -> None:
    study = place.start(step_s=30)
    place.wait_until_begun("a", "e")
    study.send_signal(signal.SIGINT)
    time.sleep(2)
    assert place.stages_at_work() == {"a", "e"}
    study.send_signal(signal.SIGINT)
    assert study.wait(PATIENCE_S) == 5
    assert place.stages_at_work() == set()
    assert place.states()["a"].state == "stopped"
    assert place.states()["a"].reason == "ended at once: the study got a second Ctrl-C"


@kills
def test_cancel_ends_the_run_and_its_stages_after_they_have_saved(place: StandIn) -> None:
    place.hold.touch()
    study = place.start()
    place.wait_until_begun("a")
    said: list[str] = []
    cancel_study(place.folder, [], finders(place.run_root), now=False, say=said.append)
    output, _ = study.communicate(timeout=PATIENCE_S)
    assert study.returncode == 5
    assert "stopped by SIGTERM; 0 of 5 finished" in output
    assert said[0] == f"the run of the study is asked to end (process {study.pid})"
    assert place.stages_at_work() == set()
    assert place.states()["a"].state == "stopped"


@kills
def test_cancel_now_ends_what_does_not_listen(place: StandIn) -> None:
    study = place.start(step_s=30)
    place.wait_until_begun("a")
    cancel_study(place.folder, [], finders(place.run_root), now=True, say=lambda _: None)
    assert study.wait(PATIENCE_S) == 5
    assert place.stages_at_work() == set()
    assert place.states()["a"].state == "stopped"
    assert place.states()["a"].reason == "ended at once: study cancel --now"


@kills
def test_cancel_of_one_node_lets_the_others_go_on_and_this_run_begins_it_no_more(place: StandIn) -> None:
    place.hold.touch()
    study = place.start()
    place.wait_until_begun("e")
    cancel_study(place.folder, ["pretrain-e"], finders(place.run_root), now=False, say=lambda _: None)
    assert place.states()["e"].state == "stopped"
    place.hold.unlink()
    assert study.wait(PATIENCE_S) == 5
    assert {letter: state.state for letter, state in place.states().items()} == {
        "a": "finished",
        "b": "finished",
        "c": "finished",
        "d": "finished",
        "e": "stopped",
    }
    assert place.diary().count("pretrain-e begin") == 1


@kills
def test_cancel_finds_what_runs_after_the_run_was_killed(place: StandIn) -> None:
    place.hold.touch()
    study = place.start()
    place.wait_until_begun("a")
    study.kill()
    study.wait()
    cancel_study(place.folder, [], finders(place.run_root), now=False, say=lambda _: None)
    assert place.stages_at_work() == set()
    assert place.states()["a"].state == "stopped"


def test_cancel_refuses_a_name_that_fits_no_node_at_work(place: StandIn) -> None:
    with pytest.raises(
        UsageError, match="pretrain-z: is no node that runs; running or queued: none\n  A node that waits"
    ):
        cancel_study(place.folder, ["pretrain-z"], finders(place.run_root), now=False, say=lambda _: None)


def test_on_a_full_disk_nothing_more_is_begun_and_the_next_run_goes_on(
    place: StandIn, undisturbed: dict[str, bytes]
) -> None:
    node = place.folder / "nodes" / stage_id("e")
    node.mkdir(parents=True)
    full = node / "launch.json.partial"
    full.symlink_to("/dev/full")
    place.hold.touch()
    study = place.start()
    place.listen(study, "pretrain-e could not be begun")
    place.wait_until_begun("a")
    place.hold.unlink()
    output, _ = study.communicate(timeout=PATIENCE_S)
    assert study.returncode == 4
    assert "No space left on device" in output
    assert place.diary() == ["pretrain-a begin", "pretrain-a end 0"]  # b and d could have begun
    full.unlink()
    assert place.run()[0] == 0
    assert place.ends() == undisturbed


@kills
def test_killed_while_it_writes_a_start_down_the_run_leaves_nothing_that_nobody_knows(
    place: StandIn, undisturbed: dict[str, bytes]
) -> None:
    node = place.folder / "nodes" / stage_id("e")
    node.mkdir(parents=True)
    pipe = node / "launch.json.partial"
    os.mkfifo(pipe)  # who opens it to write waits for a reader
    study = place.start()
    child = place.wait_for_child(node)
    study.kill()
    study.wait()
    assert child.is_running()
    gone, _ = psutil.wait_procs([child], timeout=PATIENCE_S)
    assert gone
    assert "error: not begun" in (node / "attempt_1.log").read_text()
    pipe.unlink()
    code, output = place.run()
    assert code == 0, output
    assert place.diary().count("pretrain-e begin") == 1
    assert place.ends() == undisturbed


@kills
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_the_status_is_true_and_the_end_is_that_of_an_undisturbed_run(
    seed: int, place: StandIn, undisturbed: dict[str, bytes]
) -> None:
    choose = random.Random(seed)
    victims = choose.sample(["run", "run", "stages", "stages", "both", "both"], 6)
    for victim in victims:
        if victim == victims[0]:  # so this one surely meets a stage at work
            place.hold.touch()
        study = place.start(step_s=0.1)
        if not place.wait_until_at_work(study):
            break  # everything is finished
        time.sleep(choose.uniform(0, 0.4))
        if victim != "stages":
            os.kill(study.pid, signal.SIGKILL)
            study.wait()
        if victim != "run":
            place.kill_stages()
            time.sleep(0.1)
        states = place.states()
        if victim != "stages":  # nothing begins any more, so nothing changes between the two looks but ends
            assert place.stages_at_work() <= {letter for letter, state in states.items() if state.state == "running"}
        if victim == "both":
            assert "running" not in {state.state for state in states.values()}
        place.hold.unlink(missing_ok=True)
        if victim == "stages":
            assert study.wait(PATIENCE_S) in (0, 5)
            after = {state.state for state in place.states().values()}
            assert after <= {"finished", "failed", "blocked"}
    code, output = place.run()
    assert code == 0, output
    assert place.ends() == undisturbed
    diary = place.diary()
    assert not [line for line in diary if line.endswith("refused")]
    begins, ends = (sum(word in line for line in diary) for word in (" begin", " end "))
    assert ends == len(PARENTS)
    assert begins > ends  # so many starts were killed at work
