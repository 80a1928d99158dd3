"""A server that speaks vLLM's interface as tests/data/rl_engines/vllm.json records it, and really samples.

    with serving(folder) as server:
        server.url, server.label, server.pushed

Weights are those of the folder that it was last told to load, computed by transformers without caches: another
program than the one that trains, as vLLM is. Fields and routes that vLLM has not are answered by 400 and 404.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from data_tools.tokenizer import Tokenizer

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "rl_engines" / "vllm.json").read_text())
SSM, PREFIXES = "mamba_ssm_cache_dtype", "enable_prefix_caching"


class RefusedError(Exception):
    """A request that vLLM would refuse; holds the status."""


class Served:
    """One server's weights, how it was started, and what it was asked.

    Attributes:
        label: What its weights are called.
        pushed: Labels in the order in which they came.
        texts: Requests for texts so far.
        requests: The bodies of these.
        before_text: Called before each text.
        changed: Applied to each choice before it is sent.
        is_dead: Whether connections are closed without an answer.
        dead_for: The same for so many connections.
        is_deaf: Whether it says that it takes weights, and keeps those that it has.
    """

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.label, self.url = folder, "default", ""
        self.pushed: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.before_text: Callable[[], None] = lambda: None
        self.changed: Callable[[dict[str, Any]], dict[str, Any]] = lambda choice: choice
        self.is_dead = self.is_deaf = False
        self.dead_for = 0
        self.version = changes.pop("version", "0.33.0")
        self.max_model_len = changes.pop("max_model_len", 4096)
        self.is_in_dev_mode = changes.pop("is_in_dev_mode", True)
        self.config = {
            "model_config": {"dtype": "torch.float32", "logprobs_mode": "raw_logprobs", "generation_config": "vllm"},
            "cache_config": {PREFIXES: False, SSM: "float32"},
        }
        for section in self.config.values():
            section.update({key: changes.pop(key) for key in list(section) if key in changes})
        assert not changes, changes
        self._start, self._model, self._lock = folder, None, threading.RLock()

    def start_again(self) -> None:
        """As a scheduler does with a server that died: with the weights that its command line names."""
        with self._lock:
            self.folder, self.label, self.is_dead, self._model = self._start, "default", False, None

    def answer(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the server says; raises RefusedError."""
        if route not in RECORDED["routes"]:
            raise RefusedError(404, f"no route {route}")
        if RECORDED["routes"][route].get("needs") and not self.is_in_dev_mode:
            raise RefusedError(404, "Not Found")
        return self._ANSWERS[route](self, body)

    def _server_info(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"vllm_config": self.config, "vllm_env": {}, "system_env": {}}

    def _models(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "policy", "max_model_len": self.max_model_len}]}

    def _tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        _require_known(body, RECORDED["fields"]["TokenizeCompletionRequest"])
        assert not body.get("add_special_tokens", True), "vLLM adds them unless told otherwise"
        tokens = Tokenizer.load(self._start, special_tokens="parse").encode(body["prompt"])
        return {"count": len(tokens), "max_model_len": self.max_model_len, "tokens": [int(token) for token in tokens]}

    def _rpc(self, body: dict[str, Any]) -> dict[str, Any]:
        _require_known(body, RECORDED["routes"]["POST /collective_rpc"]["body"])
        assert body["method"] == "reload_weights"
        _require_known(body["kwargs"], RECORDED["reload_weights"])
        folder = Path(body["kwargs"]["weights_path"])
        if not list(folder.glob("*.safetensors")):
            raise RefusedError(500, f"Cannot find any model weights with `{folder}`")
        if not self.is_deaf:
            with self._lock:
                self.folder, self._model = folder, None
                self._loaded()  # it may be removed behind the answer
        return {"results": [None]}

    def _label(self, body: dict[str, Any]) -> dict[str, Any]:
        _require_known(body, RECORDED["routes"]["POST /update_weight_version"]["body"])
        self.label = body["new_version"]
        self.pushed.append(self.label)
        return {"success": True, "new_version": self.label}

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        _require_known(body, RECORDED["fields"]["CompletionRequest"])
        self.before_text()
        with self._lock:
            self.requests.append(body)
            ids, log_probs = self._sample(body)
            label = self.label
        choice = {
            "index": 0,
            "text": "",
            "token_ids": ids,
            "logprobs": {"token_logprobs": log_probs, "tokens": [f"token_id:{token}" for token in ids]},
            "finish_reason": "stop" if ids[-1] in body["stop_token_ids"] else "length",
            "weight_versions": [{"version": label, "start": 0, "end": len(ids)}],
        }
        choice = self.changed(choice)
        _require_known(choice, RECORDED["fields"]["CompletionResponseChoice"])
        return {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": body["model"], "choices": [choice]}

    def _sample(self, body: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Tokens and log-probabilities: `raw_logprobs` are of logits before bias and temperature."""
        import torch

        assert (body["n"], body["top_p"], body["top_k"], body["ignore_eos"]) == (1, 1.0, 0, True)
        model, generator = self._loaded(), torch.Generator().manual_seed(body["seed"])
        new: list[int] = []
        log_probs: list[float] = []
        while len(new) < body["max_tokens"] and not (new and new[-1] in body["stop_token_ids"]):
            with torch.no_grad():
                logits = model(torch.tensor([[*body["prompt"], *new]]), use_cache=False).logits[0, -1].float()
            biased = logits.clone()
            for token, bias in body.get("logit_bias", {}).items():
                biased[int(token)] += bias
            scaled = (biased / body["temperature"]).log_softmax(-1)
            given = logits.log_softmax(-1) if self.config["model_config"]["logprobs_mode"] == "raw_logprobs" else scaled
            token = int(torch.multinomial(scaled.exp(), 1, generator=generator))
            new.append(token)
            log_probs.append(float(given[token]))
        return new, log_probs

    def _loaded(self) -> Any:
        if self._model is None:
            import torch
            from transformers import AutoModelForCausalLM

            self._model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        return self._model

    _ANSWERS: ClassVar[dict[str, Callable[[Served, dict[str, Any]], dict[str, Any]]]] = {
        "GET /version": lambda self, _: {"version": self.version},
        "GET /v1/models": _models,
        "GET /server_info": _server_info,
        "POST /tokenize": _tokenize,
        "POST /v1/completions": _complete,
        "POST /collective_rpc": _rpc,
        "POST /update_weight_version": _label,
    }


def _require_known(body: dict[str, Any], fields: list[str]) -> None:
    if unknown := sorted(body.keys() - set(fields)):
        raise RefusedError(400, f"unknown: {unknown}")


@contextlib.contextmanager
def serving(folder: Path, **changes: Any) -> Iterator[Served]:
    """A server on a free port of this machine, as long as the context lasts.

    Args:
        folder: An exported model, whose weights it begins with.
        **changes: Of how it is started: `version`, `max_model_len`, `is_in_dev_mode`, keys of its config.
    """
    served = Served(folder, **changes)

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            if served.is_dead or served.dead_for:
                served.dead_for = max(0, served.dead_for - 1)
                return  # http.server closes the connection
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or "{}")
            try:
                status, said = 200, served.answer(f"{self.command} {self.path.partition('?')[0]}", body)
            except RefusedError as refused:
                status, said = refused.args[0], {"error": {"message": refused.args[1]}}
            if served.is_dead:
                return
            content = said if isinstance(said, bytes) else json.dumps(said).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has broken off
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = _reply

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)  # looks so often for its end
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
