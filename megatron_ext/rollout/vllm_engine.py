"""The engine that samples on vLLM servers, which take over each step's weights from a folder.

    push       STAGE/policy/step_N is written as `export` writes it, and the one before removed; every server reloads
               its weights from there, then calls them STAGE_ID/step_N
    sample     one request for each text; its answer says which weights sampled every token

Servers are of a place: the environment names them, no recipe does. Every data-parallel rank asks all of them in turn,
`num_slots` texts at once. What the in-process engine promises and this one cannot: a sample depends on what a server
computes beside it, for sums in other orders round otherwise. Seeds are sent all the same; most tokens come out equal.

Written from the documentation and source of vLLM 0.33.0.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from data_tools.errors import SetupError, UsageError, UserError
from megatron_ext.convert.live_folder import write_live_folder
from megatron_ext.plan.rollout import rollout_problems
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.plan.vllm import UNTRIED
from megatron_ext.rollout.inprocess import unwrapped
from megatron_ext.rollout.keyed_random import stream_key
from megatron_ext.rollout.protocol import Completion, Health, Prompt, Sampling, check_prompts
from megatron_ext.rollout.share import share_prompts
from megatron_ext.rollout.vllm_checks import check_server, completion_of
from megatron_ext.rollout.vllm_pool import ServerPool
from megatron_ext.rollout.vllm_server import VllmServer, servers_of_environment
from megatron_ext.rollout.waiting import Sample
from megatron_ext.runtime.agreement import answer_of_main_rank, raise_on_all_ranks
from megatron_ext.runtime.parallel import PatientWait

_NEVER = -100.0
"""The lowest bias that vLLM takes, in nats: for ids that the tokenizer does not have."""


_MOST_BIASED = 1024
"""Ids of a request that a server can bias (vLLM 0.33.0, `v1/worker/gpu/sample/logit_bias.py`): more end its worker."""


class VllmEngine:
    """A `RolloutEngine` over HTTP.

    Args:
        model: The policy, wrapped for training or not; it is not changed.
        plan: The plan that built it.
        groups: Process groups; `dp` ranks share the prompts, the first of each group of `tp` ranks asks.
        num_slots: Texts that a data-parallel rank asks for at once.
        folder: Of the stage, which servers see under the same path.

    Raises:
        SetupError: No server is named, one is not as the stage needs it, or no rank holds a whole layer chain.
    """

    def __init__(
        self, model: Any, plan: StagePlan, groups: ProcessGroupCollection, *, num_slots: int, folder: Path
    ) -> None:
        if problems := rollout_problems(plan.layout):
            raise SetupError("\n".join(problems))
        self._model, self._plan, self._groups = unwrapped(model), plan, groups
        self._num_slots, self._folder = num_slots, folder.resolve() / "policy"
        self._wait_for_all = PatientWait()
        self._bias = bias_of_unknown_ids(plan.data.tokenizer_vocab_size, plan.model_size.padded_vocab_size)
        servers = servers_of_environment()
        self._pool = ServerPool(servers, self._checked_names(servers))
        self._policy_version, self._label = -1, ""
        self._prompt_tokens = self._sampled_tokens = 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        on_finished: Callable[[Completion], None] | None = None,
    ) -> list[Completion]:
        """Samples this data-parallel rank's share; see `RolloutEngine.generate`.

        Raises:
            TrainingError: No server answers for minutes, or one answers with other weights.
        """
        assert self._label, "weights are pushed before anything is sampled"
        check_prompts(prompts, vocab_size=self._plan.data.tokenizer_vocab_size)
        if sampling.stop_strings:
            raise UsageError(f"stop_strings: {sampling.stop_strings}: servers end texts by ids only; use stop_ids.")
        shared: list[Any] = [[], None]
        if self._groups.tp.rank() == 0:
            try:
                shared[0] = self._sample_share(prompts, sampling, on_finished or (lambda _: None))
            except UserError as error:
                shared[1] = error
        self._wait_for_all()  # the others may wait here for longer than a collective may take
        dist.broadcast_object_list(shared, group_src=0, group=self._groups.tp)
        completions, error = shared
        if error is not None:
            raise error
        return list(completions)

    def load_weights(self, *, policy_version: int) -> None:
        """Pushes the weights to every server, unless they have this version's; see `RolloutEngine.load_weights`.

        Raises:
            UserError: The folder cannot be written, or a server does not take them.
        """
        if policy_version == self._policy_version:
            return
        label, folder = f"{self._plan.stage_id}/step_{policy_version}", self._folder / f"step_{policy_version}"
        error: UserError | None = None
        try:
            self.close()
            if self._groups.dp.rank() == 0:
                write_live_folder(folder, self._model, self._plan, self._groups)
            if dist.get_rank() == 0:
                self._pool.push(folder, label)
        except UserError as caught:
            error = caught
        except OSError as caught:
            error = SetupError(f"{folder}: cannot be written: {caught.strerror}; servers read the weights there.")
        self._wait_for_all()  # servers may read for longer than a collective may take
        raise_on_all_ranks(error)
        self._policy_version, self._label = policy_version, label

    def close(self) -> None:
        """Removes the weights that were pushed: servers have read them."""
        if dist.get_rank() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def health(self) -> Health:
        """What the engine has done; the servers' caches are their own."""
        return Health(
            policy_version=self._policy_version,
            num_slots=self._num_slots,
            cache_bytes=0,
            prompt_tokens=self._prompt_tokens,
            sampled_tokens=self._sampled_tokens,
            decode_steps=0,
        )

    def _checked_names(self, servers: Sequence[VllmServer]) -> list[str]:
        """The model's name on each server; the main rank asks for all."""
        names: list[str] = []
        error: UserError | None = None
        if dist.get_rank() == 0:
            try:
                names = [check_server(server, self._plan) for server in servers]
                urls = ", ".join(server.url for server in servers)
                print(f"rollouts: vLLM at {urls}; {UNTRIED}, and its tokens cannot be sampled again", flush=True)
            except UserError as caught:
                error = caught
        self._wait_for_all()
        raise_on_all_ranks(error)
        return list(answer_of_main_rank(names))

    def _sample_share(
        self, prompts: Sequence[Prompt], sampling: Sampling, on_finished: Callable[[Completion], None]
    ) -> list[Completion]:
        rank = self._groups.dp.rank()
        mine = share_prompts(prompts, self._groups.dp.size(), max_new_tokens=sampling.max_new_tokens)[rank]
        samples = [
            Sample(index, prompts[index].first_sample + number)
            for index in sorted(mine, key=lambda index: (-len(prompts[index].ids), index))
            for number in range(prompts[index].num_samples)
        ]
        found: list[Completion] = []
        threads = ThreadPoolExecutor(self._num_slots)
        waiting = [
            threads.submit(self._ask, rank + place, prompts[sample.prompt_index], sample, sampling)
            for place, sample in enumerate(samples)
        ]
        try:
            for done in as_completed(waiting):
                found.append(completion := done.result())
                self._prompt_tokens += len(prompts[completion.prompt_index].ids)
                self._sampled_tokens += len(completion.token_ids)
                on_finished(completion)
        finally:
            self._pool.break_off()  # nothing is left to, where all went well
            threads.shutdown(cancel_futures=True)
            self._pool.end()
        return sorted(found, key=lambda one: (one.prompt_index, one.sample_index))

    def _ask(self, first: int, prompt: Prompt, sample: Sample, sampling: Sampling) -> Completion:
        def read(answer: Any, url: str) -> Completion:
            return completion_of(
                answer,
                sample,
                sampling,
                label=self._label,
                vocab_size=self._plan.data.tokenizer_vocab_size,
                policy_version=self._policy_version,
                url=url,
            )

        body = request_of(prompt, sample, sampling, self._bias)
        return self._pool.ask(first, body, read, timeout_s=_patience_s(sampling))


def bias_of_unknown_ids(known: int, padded: int) -> dict[str, float]:
    """What keeps a server from sampling ids that the tokenizer does not have.

    Args:
        known: Ids of the tokenizer.
        padded: Rows of the model's output layer.

    Raises:
        SetupError: They are more than a server takes.
    """
    if padded - known > _MOST_BIASED:
        raise SetupError(
            f"rl.engine: vllm: the model has {padded:,} ids and the tokenizer {known:,}; a server can be kept from "
            f"{_MOST_BIASED:,} ids, and these are {padded - known:,}. Sample in-process, or train a model whose "
            "vocab_size is the tokenizer's."
        )
    return {str(token): _NEVER for token in range(known, padded)}


def request_of(prompt: Prompt, sample: Sample, sampling: Sampling, bias: dict[str, float]) -> dict[str, Any]:
    """The body of a request for one text, its model apart; nothing that matters is left to a server's defaults.

    Args:
        prompt: Its ids are sent, no text.
        sample: One of its samples.
        sampling: As asked.
        bias: Of ids that must not come.
    """
    return {
        "prompt": list(prompt.ids),
        "n": 1,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": int(stream_key(prompt.seed, sample.sample_index)) >> 1,  # theirs has a sign
        "stop_token_ids": sorted(sampling.stop_ids),
        "ignore_eos": True,  # these ids alone end a text
        "logprobs": 0,  # of the sampled token alone
        "add_special_tokens": False,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "return_weight_versions": True,
        **({"logit_bias": bias} if bias else {}),
    }


def _patience_s(sampling: Sampling) -> float:
    """How long one text may take: less than four tokens a second is a server that hangs."""
    return 60.0 + sampling.max_new_tokens / 4
