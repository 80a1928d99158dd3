"""The servers of a run together: weights go to all of them, a question to the next that answers.

a server is down       the next one is asked at once
all of them are        all again after `WAITS_S[0]` seconds, then after `WAITS_S[1]`, …
still                  an error, which says what the last one said
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from data_tools.errors import TrainingError
from megatron_ext.rollout.vllm_server import ServerDownError, ServerRefusedError, VllmServer

WAITS_S = (2.0, 10.0, 30.0, 60.0, 120.0)
"""Between rounds over all servers: one that is started again by its scheduler needs some minutes."""

RELOAD_S = 1800.0
"""For reading the weights of a large model from a shared disk."""

Answer = TypeVar("Answer")


class ServerPool:
    """Several servers with the same weights; several threads may ask at once.

    Args:
        servers: At least one.
        names: Of their models, which requests give.
    """

    def __init__(self, servers: Sequence[VllmServer], names: Sequence[str]) -> None:
        self._servers, self._names = tuple(servers), tuple(names)
        self._stop = threading.Event()
        self._again: list[str] = []  # why questions since the last `end` were asked again

    def push(self, folder: Path, label: str) -> None:
        """Has every server take its weights from a folder, and call them `label`.

        Raises:
            TrainingError: One does not.
        """
        with ThreadPoolExecutor(len(self._servers)) as threads:
            for done in [threads.submit(self._push_to, server, folder, label) for server in self._servers]:
                done.result()

    def ask(self, first: int, body: dict[str, Any], read: Callable[[Any, str], Answer], *, timeout_s: float) -> Answer:
        """What the first server in turn that answers says to a request for a text.

        Args:
            first: Number of the server that is asked first, modulo their count.
            body: The request, its model apart.
            read: Makes something of an answer and the server's address; raises ServerDownError to have another asked.
            timeout_s: For one answer.

        Raises:
            TrainingError: None answers, or one refuses, or `read` does.
        """
        for _ in self._rounds():
            for place in range(len(self._servers)):
                number = (first + place) % len(self._servers)
                server = self._servers[number]
                if self._stop.is_set():
                    break
                try:
                    asked = {"model": self._names[number], **body}
                    return read(server.post("/v1/completions", asked, timeout_s=timeout_s), server.url)
                except ServerDownError as error:
                    self._note(error)
                except ServerRefusedError as error:
                    remedy = "Every request is alike: the server is set up otherwise than it was."
                    raise TrainingError(f"{error}\n  {remedy}") from None
        raise TrainingError(
            f"{self._again[-1] if self._again else 'broken off'}\n  No vLLM server gives an answer, for "
            f"{sum(WAITS_S):.0f} s. Nothing was learned from the step, and the state behind the step before is kept: "
            "start the servers, and run again to go on."
        )

    def break_off(self) -> None:
        """Ends all that is being asked: it raises TrainingError where it was asked. `end` must follow."""
        self._stop.set()
        for server in self._servers:
            server.abort()

    def end(self) -> None:
        """Behind the last answer: says how often was asked again."""
        if len(self._again) > 1:
            print(f"WARNING: rollouts: {len(self._again):,} requests were asked again", file=sys.stderr, flush=True)
        self._again.clear()
        self._stop.clear()

    def _note(self, error: ServerDownError) -> None:
        if self._stop.is_set():  # broken off by ourselves
            return
        self._again.append(str(error))
        if len(self._again) == 1:
            print(f"WARNING: rollouts: {error}; asked again", file=sys.stderr, flush=True)

    def _push_to(self, server: VllmServer, folder: Path, label: str) -> None:
        last: Exception | None = None
        for _ in self._rounds():
            try:
                reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
                server.post("/collective_rpc", reload, timeout_s=RELOAD_S)
                server.post("/update_weight_version", {"new_version": label})
                return
            except (ServerDownError, ServerRefusedError) as error:
                last = error
                if isinstance(error, ServerRefusedError) or error.has_failed:
                    break  # it was there, and could not
        raise TrainingError(
            f"{last}\n  The server does not take the weights of {folder}: it must see that folder under the same path, "
            "and serve a model of these shapes. Nothing was learned from them; run again to go on."
        )

    def _rounds(self) -> Iterator[int]:
        """Numbers of the rounds over the servers, with a wait before each but the first; none once all is off."""
        for number in range(len(WAITS_S) + 1):
            if number and self._stop.wait(WAITS_S[number - 1]):
                return
            yield number
