"""When a collective fails because of another rank, one of those that are left says which and why."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from data_tools.errors import SetupError
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.runtime.roll_call import LostRankError, RollCall, is_of_other_rank
from megatron_ext.training.ending import Ending
from tests.support.distributed import run_distributed

HOST = socket.gethostname()


def said(what_rank_2_does: str) -> str | None:
    """What this rank of three says when a sum over all ranks fails, 4 s being the limit."""
    launch = Launch.from_environment()
    with process_groups(launch, timeout=timedelta(seconds=4)):
        roll_call = RollCall(launch)
        dist.barrier()
        if launch.rank == 2:
            if what_rank_2_does == "raises":
                roll_call.say_end(KeyError("x"))
                return None
            if what_rank_2_does == "sleeps":
                time.sleep(20)
                return None
            subprocess.Popen(["sh", "-c", f"sleep 20; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
            return None
        error = None
        try:
            dist.all_reduce(torch.ones(1))
        except RuntimeError as caught:
            error = caught
        assert error is not None
        assert is_of_other_rank(error)
        lost = roll_call.explain(error)  # the store ends with rank 0
        return None if lost is None else str(lost)


@pytest.mark.parametrize(
    ("what_rank_2_does", "sentence"),
    [
        ("raises", f"another rank was lost. rank 2 ({HOST}) ended: KeyError: 'x'.\n"),
        pytest.param(
            "sleeps",
            f"another rank was lost. rank 2 ({HOST}) lives, and did not come: it works or waits elsewhere.\n",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "stands still",
            f"another rank was lost. No sign of rank 2 ({HOST}): gone, standing still, or not reached.\n",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_one_rank_says_which_one_was_lost_and_how(what_rank_2_does: str, sentence: str) -> None:
    texts = [text for text in run_distributed(said, 3, what_rank_2_does, timeout_s=120) if text is not None]
    assert len(texts) == 1, texts
    assert texts[0].startswith(sentence)
    assert texts[0].endswith("Run again to go on from the newest checkpoint.")


def spoke_first_and_last() -> list[str]:
    """What two ranks say of a failure: rank 0, with which the store ends, and later rank 1."""
    launch = Launch.from_environment()
    store, _, _ = next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=20))))
    roll_call = RollCall(launch)
    store.set(f"there {launch.rank}", "")
    store.wait(["there 0", "there 1"])
    if launch.rank == 1:
        with contextlib.suppress(RuntimeError):
            store.wait(["never"], timedelta(seconds=30))
    lost = roll_call.explain(RuntimeError("[/gloo/pair.cc:1] Connection closed by peer"))
    return [] if lost is None else [str(lost).splitlines()[0]]


def test_a_rank_that_heard_an_alarm_does_not_accuse_the_rank_that_raised_it_and_is_gone() -> None:
    assert run_distributed(spoke_first_and_last, 2) == [
        ["another rank was lost. All ranks live: a connection between them broke."],
        [],
    ]


def failed_alone() -> str | None:
    """What rank 0 says when rank 1 has met an error of its own."""
    launch = Launch.from_environment()
    with process_groups(launch, timeout=timedelta(seconds=60)):
        ending = Ending()
        ending.roll_call = RollCall(launch)
        dist.barrier()
        if launch.rank == 1:
            ending.fail(SetupError("/data: disk full\n  Make room."), launch)
            return None
        ending.roll_call._store.wait(["ended 1"])
        lost = ending.roll_call.explain(RuntimeError("[/gloo/pair.cc:1] Connection closed by peer"))
        return str(lost).splitlines()[0]


def test_of_a_rank_that_ends_with_an_error_of_its_own_the_others_say_it() -> None:
    sentence = f"another rank was lost. rank 1 ({HOST}) ended: SetupError: /data: disk full."
    assert run_distributed(failed_alone, 2) == [sentence, None]


def came_alone() -> str:
    """What rank 0 of two says when rank 1 does not come."""
    launch = Launch.from_environment()
    if launch.rank == 1:
        return ""
    try:
        with process_groups(launch, timeout=timedelta(seconds=2)):
            return "they met"
    except LostRankError as error:
        return str(error)


def test_a_rank_that_never_came_is_an_error_with_the_limit_and_its_key() -> None:
    said, _ = run_distributed(came_alone, 2)
    assert said.startswith("another rank was lost. Not all 2 ranks met within 2 s (timeouts.start_s of the site).\n")


def ended_silently() -> tuple[bool, bool]:
    """Whether this rank still answers after it has left, and whether it answers an alarm that comes then."""
    launch = Launch.from_environment()
    store, _, _ = next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=20))))
    roll_call = RollCall(launch)
    roll_call.close()
    answers = any(thread.name == "roll call" for thread in threading.enumerate())
    return answers, store.check([f"roll call/here {launch.rank}"])


def test_a_rank_that_leaves_leaves_no_thread_behind_and_answers_nothing() -> None:
    """A thread that waits for a store which ends while Python does aborts the process."""
    assert run_distributed(ended_silently, 1) == [(False, False)]


def test_an_error_of_this_rank_itself_is_not_laid_on_another() -> None:
    assert not is_of_other_rank(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert not is_of_other_rank(KeyError("/gloo/"))
