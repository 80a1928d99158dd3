"""What must be true of a server before anything is sampled from it, and of every answer before it counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data_tools.errors import SetupError, TrainingError
from data_tools.tokenizer import Tokenizer
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.plan.vllm import OLDEST_VERSION, Preset, presets
from megatron_ext.rollout.protocol import Completion, Finish, Sampling
from megatron_ext.rollout.vllm_server import ServerDownError, ServerRefusedError, VllmServer
from megatron_ext.rollout.waiting import Sample

PROBES = ("The answer is 42.\n", "  f(x) = {a_1, b_2} != é", "Ωμέγα 中文 🙂\t<think>")
"""Texts whose ids two tokenizers are compared by: words, blanks, digits, signs, and bytes of several lengths."""

_LEAST_LOG_PROB = -9999.0
"""What vLLM writes for minus infinity."""


def check_server(server: VllmServer, plan: StagePlan) -> str:
    """Compares a server with what the stage needs of one.

    Args:
        server: That samples.
        plan: The stage, of kind rl.

    Returns:
        The name of its model, which requests give.

    Raises:
        SetupError: It is down, too old, set otherwise, of another tokenizer, or too short.
    """
    assert plan.rl is not None, "servers sample for an rl stage"
    needed = plan.rl.options.max_prompt_tokens + plan.rl.options.max_new_tokens
    try:
        _check_version(server)
        _check_presets(server, presets(plan))
        (card, *_) = server.get("/v1/models")["data"]
        if (length := card.get("max_model_len") or 0) < needed:
            raise SetupError(
                f"{server.url}: max_model_len {length:,}, and rl.max_prompt_tokens + rl.max_new_tokens are {needed:,}; "
                f"start it with --max-model-len {needed}."
            )
        name = str(card["id"])
        _check_tokenizer(server, name, plan)
    except ServerDownError as error:
        raise SetupError(
            f"{error}. rl.engine is vllm, and no server answers there; start it as `megatron-ext plan` says, and wait "
            "until its /health answers."
        ) from None
    except ServerRefusedError as error:
        raise SetupError(
            f"{error}\n  Start the server with VLLM_SERVER_DEV_MODE=1, as `megatron-ext plan` says."
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, SetupError):
            raise
        raise SetupError(f"{server.url}: does not answer as vLLM does ({type(error).__name__}: {error})") from None
    return name


def _check_version(server: VllmServer) -> None:
    version = str(server.get("/version")["version"])
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if found < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise SetupError(
            f"{server.url}: vLLM {version}: rl.engine vllm needs {oldest} or newer, whose answers say which weights "
            "made them; install a newer one."
        )


def _check_presets(server: VllmServer, asked: list[Preset]) -> None:
    config = server.get("/server_info?config_format=json")["vllm_config"]
    wrong = []
    for preset in asked:
        value = config[preset.section].get(preset.key)
        if str(value).removeprefix("torch.") != str(preset.value).removeprefix("torch."):
            wrong.append(f"  {preset.section}.{preset.key} is {value}; start it with {preset.option}")
    if wrong:
        raise SetupError("\n".join([f"{server.url}: is not set as this stage needs it:", *wrong]))


def _check_tokenizer(server: VllmServer, name: str, plan: StagePlan) -> None:
    tokenizer = Tokenizer.load(plan.data.tokenizer, special_tokens="parse")
    for text in PROBES:
        theirs = server.post("/tokenize", {"model": name, "prompt": text, "add_special_tokens": False})["tokens"]
        if theirs != (ours := [int(token) for token in tokenizer.encode(text)]):
            raise SetupError(
                f"{server.url}: has another tokenizer than {plan.data.tokenizer}: {text!r} is {theirs} there and "
                f"{ours} here; serve an export of this stage's parent."
            )


def completion_of(
    answer: Any, sample: Sample, sampling: Sampling, *, label: str, vocab_size: int, policy_version: int, url: str
) -> Completion:
    """A server's answer as a completion.

    Args:
        answer: To one request for one text.
        sample: Which one.
        sampling: As asked.
        label: Of the weights that were pushed last.
        vocab_size: Ids of the tokenizer.
        policy_version: Of these weights.
        url: The server's, for messages.

    Raises:
        ServerDownError: The server broke the text off.
        TrainingError: Other weights sampled it, or a log-probability is missing, or it ends where nothing ends it.
    """
    try:
        (choice,) = answer["choices"]
        ids = [int(token) for token in choice["token_ids"] or ()]
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{url}: does not answer as vLLM does ({type(error).__name__}: {error})") from None
    if choice.get("finish_reason") == "abort":
        raise ServerDownError(f"{url}: broke off a text")
    _require_weights(choice, label, url)
    if not ids or not 0 <= min(ids) <= max(ids) < vocab_size:
        raise TrainingError(f"{url}: no tokens, or ids that are none of the tokenizer's {vocab_size:,}: {ids[:8]}")
    return Completion(
        prompt_index=sample.prompt_index,
        sample_index=sample.sample_index,
        token_ids=tuple(ids),
        log_probs=_log_probs(choice, len(ids), url),
        finish=_finish(choice, ids, sampling, url),
        policy_version=policy_version,
    )


def _require_weights(choice: Mapping[str, Any], label: str, url: str) -> None:
    found = {str(span.get("version")) for span in choice.get("weight_versions") or ()}
    if found != {label}:
        raise TrainingError(
            f"{url}: sampled with weights {', '.join(sorted(found)) or 'that it does not name'}, and {label} were "
            "pushed last; nothing of it is counted.\n  The server was started again since (its own weights are called "
            "default), or another run pushes weights to it: give each run servers of its own. Run again to go on."
        )


def _log_probs(choice: Mapping[str, Any], count: int, url: str) -> tuple[float, ...]:
    found = (choice.get("logprobs") or {}).get("token_logprobs") or []
    if len(found) != count or None in found:
        raise TrainingError(f"{url}: {count:,} tokens come with {len(found):,} log-probabilities, or empty ones.")
    if min(found) <= _LEAST_LOG_PROB or max(found) > 0:
        raise TrainingError(
            f"{url}: log-probabilities from {min(found):g} to {max(found):g}: the logits of the server are not finite. "
            "Where the mismatch of steps before was small, the weights have diverged; else the server's kernels are at "
            "fault."
        )
    return tuple(map(float, found))


def _finish(choice: Mapping[str, Any], ids: list[int], sampling: Sampling, url: str) -> Finish:
    reason = choice.get("finish_reason")
    if reason == "stop" and ids[-1] in sampling.stop_ids:
        return "stop"
    if reason == "length" and len(ids) == sampling.max_new_tokens:
        return "length"
    raise TrainingError(
        f"{url}: a text of {len(ids):,} tokens ended by {reason!r} with id {ids[-1]}; asked were at most "
        f"{sampling.max_new_tokens:,}, to be ended by {sorted(sampling.stop_ids)} alone."
    )
