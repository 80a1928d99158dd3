"""One vLLM server as an HTTP client sees it.

    POST /v1/completions {"model", "prompt": ids, "max_tokens", "logprobs": 0, "return_token_ids": true,
                          "return_weight_versions": true, …}
      -> {"choices": [{"token_ids", "logprobs": {"token_logprobs"}, "finish_reason",
                       "weight_versions": [{"version", "start", "end"}]}]}
    POST /collective_rpc {"method": "reload_weights", "kwargs": {"weights_path": folder}}
    POST /update_weight_version {"new_version": label}
    POST /tokenize {"model", "prompt", "add_special_tokens": false} -> {"tokens"}
    GET /v1/models -> {"data": [{"id", "max_model_len"}]}
    GET /server_info?config_format=json -> {"vllm_config": {"cache_config": {…}, "model_config": {…}}}
    GET /version -> {"version"}

Source: vLLM 0.33.0, `entrypoints/openai/completion/protocol.py`, `entrypoints/rl/online/api_router.py`,
`entrypoints/serve/{dev/rpc,dev/server_info,tokenize,instrumentator}`; tests/data/rl_engines/vllm.json has the fields.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from data_tools.errors import SetupError
from megatron_ext.plan.vllm import SERVERS

CONNECT_S = 30.0
"""A server that takes no connection or answers no small question for so long is taken for one that is down."""


class ServerDownError(Exception):
    """A server gives no answer, or says that it cannot give one now: another time or server may.

    Attributes:
        has_failed: Whether it answered that it tried and failed (500).
    """

    has_failed = False


class ServerRefusedError(Exception):
    """A server says that a request is wrong: asking again gives the same."""


def servers_of_environment() -> list[VllmServer]:
    """The servers of this place, which are no part of any recipe.

    Raises:
        SetupError: None are named, or a name is no address.
    """
    names = [name.strip() for name in os.environ.get(SERVERS, "").split(",") if name.strip()]
    if not names:
        raise SetupError(
            f"{SERVERS}: not set, and rl.engine is vllm: it names the servers that sample, such as "
            "http://node7:8000,http://node8:8000. `megatron-ext plan` prints the line that starts one."
        )
    return [VllmServer(name) for name in dict.fromkeys(names)]


class VllmServer:
    """Asks one server; several threads may at once.

    Args:
        url: Such as http://node7:8000.

    Raises:
        SetupError: It is no address.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise SetupError(f"{SERVERS}: {url!r} is no address of a server; write http://HOST:PORT.")
        self.url = url.rstrip("/")
        self._parts = parts
        self._open: set[http.client.HTTPConnection] = set()

    def get(self, path: str) -> Any:
        """The answer to a small question; see `post`."""
        return self._ask("GET", path, None, CONNECT_S)

    def post(self, path: str, body: dict[str, Any], *, timeout_s: float = CONNECT_S) -> Any:
        """What the server answers.

        Args:
            path: With its query.
            body: Sent as JSON.
            timeout_s: After which the server is taken for one that is down.

        Raises:
            ServerDownError: There was no answer, or one of 500 and above, or 429.
            ServerRefusedError: The request is wrong.
        """
        return self._ask("POST", path, body, timeout_s)

    def abort(self) -> None:
        """Breaks off every question that waits for an answer; the server then ends the work behind it."""
        for connection in list(self._open):
            if connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> Any:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self._parts.hostname), self._parts.port, timeout=timeout_s)
        self._open.add(connection)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ServerDownError(f"{self.url}: {str(error) or type(error).__name__}") from None
        finally:
            self._open.discard(connection)
            connection.close()
        said = f"{self.url}{path} answers {answer.status}: {text[:500]}"
        if answer.status >= 500 or answer.status == 429:
            down = ServerDownError(said)
            down.has_failed = answer.status == 500
            raise down
        if answer.status >= 400:
            raise ServerRefusedError(said)
        try:
            return json.loads(text or "null")
        except ValueError:
            raise ServerRefusedError(f"{said}: no JSON") from None
