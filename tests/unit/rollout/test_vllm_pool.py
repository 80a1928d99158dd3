"""A server that is down costs a question to the next one; only when all stay away does a step fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import TrainingError
from megatron_ext.rollout import vllm_pool
from megatron_ext.rollout.vllm_pool import ServerPool
from megatron_ext.rollout.vllm_server import VllmServer
from tests.support.vllm_server import Served, serving

BODY: dict[str, Any] = {"prompt": [1]}


@pytest.fixture
def served(tmp_path: Path) -> Any:
    with serving(tmp_path) as server:
        server.answer = lambda route, body: {"route": route, "model": body.get("model")}  # type: ignore[method-assign]
        yield server


@pytest.fixture
def gone(tmp_path: Path) -> str:
    """The address of a server that has ended."""
    with serving(tmp_path) as server:
        return server.url


def ask(pool: ServerPool, first: int) -> Any:
    return pool.ask(first, BODY, lambda answer, url: (answer["model"], url), timeout_s=10)


def test_a_question_goes_to_the_next_server_where_one_is_down(
    served: Served, gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = ServerPool([VllmServer(gone), VllmServer(served.url)], ["one", "two"])
    assert [ask(pool, first) for first in range(4)] == [("two", served.url)] * 4
    pool.end()
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"WARNING: rollouts: {gone}: ")
    assert said[1:] == ["WARNING: rollouts: 2 requests were asked again"]


def test_a_server_that_comes_back_within_the_waits_is_asked_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_pool, "WAITS_S", (0.01, 0.01))
    served.dead_for = 2
    assert ask(ServerPool([VllmServer(served.url)], ["policy"]), 0) == ("policy", served.url)
    assert served.dead_for == 0


def test_servers_that_stay_away_end_the_step_with_what_the_last_one_said(
    gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_pool, "WAITS_S", (0.01, 0.02))
    with pytest.raises(TrainingError, match=r"Connection refused\n  No vLLM server gives an answer, for 0 s"):
        ask(ServerPool([VllmServer(gone)], ["policy"]), 0)


def test_what_is_asked_when_all_is_broken_off_ends_at_once(gone: str) -> None:
    pool = ServerPool([VllmServer(gone)], ["policy"])
    pool.break_off()
    with pytest.raises(TrainingError, match="broken off"):
        ask(pool, 0)  # and does not wait for minutes


def test_weights_that_a_server_cannot_load_end_the_push_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        pool = ServerPool([VllmServer(server.url)], ["policy"])
        with pytest.raises(TrainingError, match=r"answers 500.*\n.*must see that folder under the same path"):
            pool.push(tmp_path / "nowhere", "rl-0/step_1")
        assert server.pushed == []
