"""A process is found again by more than its pid."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from megatron_ext.study.processes import ask_to_end, end_at_once, identity_of, process_status

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
PARENT = (
    "import subprocess, sys, time;"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True);"
    "print('begun', flush=True);"
    "time.sleep(60)"
)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_process_that_runs_is_alive(sleeper: subprocess.Popen[bytes]) -> None:
    assert process_status(identity_of(sleeper.pid)) == "alive"


def test_a_process_that_ended_is_gone_even_before_its_parent_asks(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identity_of(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # ended, and not asked about: a zombie
    assert psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE
    assert process_status(identity) == "gone"
    sleeper.wait()
    assert process_status(identity) == "gone"


def test_another_process_with_the_same_pid_is_not_it(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identity_of(sleeper.pid)
    assert process_status(identity | {"start_ticks": identity["start_ticks"] - 1}) == "gone"


def test_a_process_of_an_earlier_boot_is_gone(sleeper: subprocess.Popen[bytes]) -> None:
    assert process_status(identity_of(sleeper.pid) | {"boot_id": "another"}) == "gone"


def test_a_process_of_another_machine_is_elsewhere(sleeper: subprocess.Popen[bytes]) -> None:
    assert process_status(identity_of(sleeper.pid) | {"boot_id": "another", "host": "another"}) == "elsewhere"


@pytest.mark.parametrize("key", ["host", "machine_id"])
def test_a_machine_is_another_one_if_its_name_or_its_installation_is(
    sleeper: subprocess.Popen[bytes], key: str
) -> None:
    assert process_status(identity_of(sleeper.pid) | {"boot_id": "another", key: "another"}) == "elsewhere"


def test_in_another_container_of_this_machine_pids_say_nothing(sleeper: subprocess.Popen[bytes]) -> None:
    assert process_status(identity_of(sleeper.pid) | {"pid_namespace": "pid:[1]"}) == "elsewhere"


@pytest.mark.parametrize(("boot_id", "status"), [(None, "alive"), ("another", "gone")])
def test_a_record_without_container_and_installation_is_of_this_machine(
    sleeper: subprocess.Popen[bytes], boot_id: str | None, status: str
) -> None:
    """As earlier versions wrote it."""
    identity = identity_of(sleeper.pid) | ({"boot_id": boot_id} if boot_id is not None else {})
    earlier = {key: identity[key] for key in ("pid", "start_ticks", "boot_id", "host")}
    assert process_status(earlier) == status


def test_a_process_is_asked_to_end(sleeper: subprocess.Popen[bytes]) -> None:
    ask_to_end(identity_of(sleeper.pid))
    assert sleeper.wait(10) == -15


def test_no_other_process_with_the_same_pid_is_asked_or_killed(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identity_of(sleeper.pid)
    other = identity | {"start_ticks": identity["start_ticks"] - 1}
    ask_to_end(other)
    end_at_once(other)
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.3)


def test_what_a_process_has_begun_in_other_sessions_ends_with_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    [child] = psutil.Process(process.pid).children()
    end_at_once(identity_of(process.pid))
    assert process.wait(10) == -9
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
