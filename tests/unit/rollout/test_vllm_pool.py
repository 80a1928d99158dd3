"""A server that is down costs a question to the next one; only when all stay away does a step fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import TrainingError
from megatron_ext.rollout import vllm_pool
from megatron_ext.rollout.vllm_pool import ServerPool
from megatron_ext.rollout.vllm_server import VllmServer
from tests.support.vllm_server import RefusedError, Served, serving

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


@pytest.fixture
def slow(served: Served) -> Iterator[threading.Event]:
    """Has the server answer after five seconds, or at the end; set as soon as it was asked."""
    asked, ended = threading.Event(), threading.Event()

    def answer(route: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.set()
        ended.wait(5)
        return {"route": route, "model": "slow"}

    served.answer = answer  # type: ignore[method-assign]
    yield asked
    ended.set()


def ask(pool: ServerPool, first: int, *, timeout_s: float = 10.0) -> Any:
    return pool.ask(first, BODY, lambda answer, url: (answer["model"], url), timeout_s=timeout_s)


def test_a_question_goes_to_the_next_server_where_one_is_down(
    served: Served, gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = ServerPool([VllmServer(gone), VllmServer(served.url)], ["one", "two"])
    assert [ask(pool, first) for first in range(4)] == [("two", served.url)] * 4
    pool.end()
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"WARNING: rollouts: {gone}: ")
    assert said[1:] == ["WARNING: rollouts: 2 requests were asked again"]
    pool.end()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_question_goes_to_the_next_server_where_one_cannot_answer_now(
    served: Served, tmp_path: Path, status: int
) -> None:
    def busy(route: str, body: dict[str, Any]) -> dict[str, Any]:
        raise RefusedError(status, "not now")

    with serving(tmp_path) as other:
        other.answer = busy  # type: ignore[method-assign]
        pool = ServerPool([VllmServer(other.url), VllmServer(served.url)], ["one", "two"])
        assert ask(pool, 0) == ("two", served.url)


def test_a_question_goes_to_the_next_server_where_one_hangs(
    served: Served, slow: threading.Event, tmp_path: Path
) -> None:
    with serving(tmp_path) as other:
        other.answer = lambda route, body: {"model": body["model"]}  # type: ignore[method-assign]
        pool = ServerPool([VllmServer(served.url), VllmServer(other.url)], ["one", "two"])
        assert ask(pool, 0, timeout_s=0.2) == ("two", other.url)
    assert slow.is_set()


@pytest.mark.parametrize("status", [200, 400])
def test_where_a_question_is_wrong_or_its_answer_no_json_no_other_server_is_asked(
    served: Served, tmp_path: Path, status: int
) -> None:
    def refusing(route: str, body: dict[str, Any]) -> Any:
        if status == 200:
            return b"<html>"
        raise RefusedError(status, "top_k: not allowed")

    said = {200: "<html>: no JSON", 400: "top_k: not allowed.*"}[status]
    with serving(tmp_path) as other:
        other.answer = refusing  # type: ignore[method-assign]
        pool = ServerPool([VllmServer(other.url), VllmServer(served.url)], ["one", "two"])
        with pytest.raises(TrainingError, match=rf"answers {status}.*{said}\n.*the server is set up otherwise"):
            ask(pool, 0)


def test_a_server_that_comes_back_within_the_waits_is_asked_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_pool, "WAITS_S", 20 * (0.2,))
    served.is_dead = True
    threading.Timer(0.2, setattr, (served, "is_dead", False)).start()
    assert ask(ServerPool([VllmServer(served.url)], ["policy"]), 0) == ("policy", served.url)


def test_servers_that_stay_away_end_the_step_with_what_the_last_one_said(
    gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_pool, "WAITS_S", (0.01, 0.02))
    with pytest.raises(TrainingError, match=r"Connection refused\n  No vLLM server gives an answer, for 0 s"):
        ask(ServerPool([VllmServer(gone)], ["policy"]), 0)


def test_what_is_asked_when_all_is_broken_off_ends_at_once_until_the_end(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = ServerPool([VllmServer(served.url)], ["policy"])
    pool.break_off()
    with pytest.raises(TrainingError, match="broken off"):
        ask(pool, 0)  # and does not wait for minutes
    pool.end()
    assert ask(pool, 0) == ("policy", served.url)
    assert capsys.readouterr().err == ""


def test_a_question_that_waits_is_broken_off_without_a_warning(
    served: Served, slow: threading.Event, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = ServerPool([VllmServer(served.url)], ["policy"])
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, pool, 0)
        assert slow.wait(30)
        pool.break_off()
        with pytest.raises(TrainingError, match="broken off"):
            waiting.result()
    assert capsys.readouterr().err == ""


def test_weights_go_to_every_server_also_to_one_that_comes_back(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_pool, "WAITS_S", (0.01,))
    folder, taken = tmp_path / "step_1", []
    with serving(tmp_path) as other:
        for name, server in (("one", served), ("two", other)):
            server.answer = lambda route, body, name=name: taken.append((name, route, body))  # type: ignore
        other.dead_for = 1
        ServerPool([VllmServer(served.url), VllmServer(other.url)], ["", ""]).push(folder, "rl-0/step_1")
    reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
    for name in ("one", "two"):
        assert [(route, body) for of, route, body in taken if of == name] == [
            ("POST /collective_rpc", reload),
            ("POST /update_weight_version", {"new_version": "rl-0/step_1"}),
        ]


def test_weights_that_a_server_cannot_load_end_the_push_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        pool = ServerPool([VllmServer(server.url)], ["policy"])
        with pytest.raises(TrainingError, match=r"answers 500.*\n.*must see that folder under the same path"):
            pool.push(tmp_path / "nowhere", "rl-0/step_1")
        assert server.pushed == []
