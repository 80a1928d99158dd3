"""A process that scores replies for this one, and may be ended at any time."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from data_tools.errors import SetupError

_MEMORY_MIB = 2048
"""Of addresses, libraries included: sympy and numpy take a quarter of it."""

_LOADING_S = 120.0
"""Libraries may lie on a slow disk; this is no limit for answers."""


class ScoringProcess:
    """One process of `data_tools.scoring_server`; it ends with the process that holds it.

    Raises:
        SetupError: It cannot be started.
    """

    def __init__(self) -> None:
        packages = [str(Path(__file__).parents[1]), *(entry or os.getcwd() for entry in sys.path)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "data_tools.scoring_server", str(_MEMORY_MIB)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(packages), "PYTHONHASHSEED": "0"},
                process_group=0,  # Ctrl-C is for who started it
            )
        except OSError as error:
            raise SetupError(f"{sys.executable}: cannot be started to score answers: {error.strerror}") from None
        assert self._process.stdin is not None, "asked for"
        assert self._process.stdout is not None, "asked for"
        self._questions, self._answers = self._process.stdin, self._process.stdout
        self._unread = b""

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether it may be asked."""
        return self._process.poll() is None

    def ask(self, question: dict[str, Any], *, limit_s: float) -> dict[str, Any]:
        """Scores one reply.

        Args:
            question: text, truth, scorer and task.
            limit_s: Wall seconds for the answer, without loading libraries.

        Returns:
            What `scoring_server` sends, in one. Where it was ended at its limit, or ended by itself, also
            {outcome: timed-out or crashed}; then it may not be asked again.

        Raises:
            SetupError: It ended before it looked at the answer.
        """
        answer: dict[str, Any] = {}
        try:
            self._send(json.dumps(question | {"limit_s": limit_s}).encode() + b"\n")
            answer = self._receive(_LOADING_S)
            if "format" in answer:
                answer |= self._receive(limit_s)
        except (TimeoutError, BrokenPipeError, EOFError) as error:
            self._kill()
            if not answer:
                raise SetupError(
                    f"the process that scores answers with {question['scorer']} ended with code "
                    f"{self._process.returncode} before it looked at one; its message stands above, if it left one"
                ) from None
            answer["outcome"] = "timed-out" if isinstance(error, TimeoutError) else "crashed"
        return answer

    def end(self) -> None:
        """Ends it."""
        self._kill()
        self._questions.close()
        self._answers.close()

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _send(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[self._questions.write(rest) :]

    def _receive(self, limit_s: float) -> dict[str, Any]:
        """The next line. Raises TimeoutError where it takes longer, EOFError where the process has ended."""
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = self._answers.read(1 << 16)
                if not chunk:
                    raise EOFError
                self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer
