"""A server is refused that is not what the stage needs, and an answer that is not what was asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import SetupError, TrainingError
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.rollout.keyed_random import stream_key
from megatron_ext.rollout.protocol import Prompt, Sampling
from megatron_ext.rollout.vllm_checks import check_server, completion_of
from megatron_ext.rollout.vllm_engine import bias_of_unknown_ids, request_of
from megatron_ext.rollout.vllm_server import SERVERS, ServerDownError, VllmServer, servers_of_environment
from megatron_ext.rollout.waiting import Sample
from tests.support.rl_project import add_rl
from tests.support.toy_project import ToyProject, make_toy_project
from tests.support.vllm_server import RECORDED, serving

SAMPLING = Sampling(3, stop_ids=frozenset({0}))
LABEL = "rl-0/step_4"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    project = make_toy_project(tmp_path_factory.mktemp("vllm"))
    add_rl(project)
    return project


@pytest.fixture(scope="module")
def plan(project: ToyProject) -> StagePlan:
    recipe, site = project.root / "rl.yaml", project.root / "site.yaml"
    return make_stage_plan(load_recipe(recipe, overrides=["rl.engine=vllm"], site=site))


def tokenizer_of(project: ToyProject) -> Path:
    """A folder that the server tokenises with; nothing is sampled from it."""
    return project.root / "data" / "tokenizer"


def test_a_server_that_is_set_as_the_stage_needs_it_says_its_models_name(project: ToyProject, plan: StagePlan) -> None:
    with serving(tokenizer_of(project), max_model_len=40) as server:
        assert check_server(VllmServer(server.url), plan) == "policy"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "0.32.0"}, "vLLM 0.32.0: rl.engine vllm needs 0.33 or newer"),
        ({"is_in_dev_mode": False}, "/server_info?config_format=json answers 404"),
        ({"enable_prefix_caching": True}, "cache_config.enable_prefix_caching is True; start it with --no-enable-"),
        (
            {"mamba_ssm_cache_dtype": "auto"},
            "mamba_ssm_cache_dtype is auto; start it with --mamba-ssm-cache-dtype float32",
        ),
        ({"logprobs_mode": "processed_logprobs"}, "start it with --logprobs-mode raw_logprobs"),
        ({"dtype": "torch.bfloat16"}, "model_config.dtype is torch.bfloat16; start it with --dtype float32"),
        ({"generation_config": "auto"}, "start it with --generation-config vllm"),
        ({"max_model_len": 39}, "max_model_len 39, and rl.max_prompt_tokens + rl.max_new_tokens are 40"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_server_of_another_setting_is_refused_with_the_option_to_start_it_with(
    project: ToyProject, plan: StagePlan, changes: dict[str, Any], message: str
) -> None:
    with serving(tokenizer_of(project), **changes) as server, pytest.raises(SetupError) as caught:
        check_server(VllmServer(server.url), plan)
    assert message in str(caught.value)


def test_a_server_of_another_tokenizer_is_refused(project: ToyProject, plan: StagePlan, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tokenizer_of(project), tmp_path / "other"))
    content = json.loads((other / "tokenizer.json").read_text())
    ids = content["model"]["vocab"]
    ids["e"], ids["f"] = ids["f"], ids["e"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with serving(other) as server, pytest.raises(SetupError, match="has another tokenizer than"):
        check_server(VllmServer(server.url), plan)


def test_what_is_no_vllm_server_is_refused(plan: StagePlan, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.answer = lambda route, body: {"hello": route}  # type: ignore[method-assign]
        with pytest.raises(SetupError, match="does not answer as vLLM does"):
            check_server(VllmServer(server.url), plan)


def test_a_server_that_is_down_is_refused_before_anything_is_trained(plan: StagePlan, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        url = server.url
    with pytest.raises(SetupError, match=r"Connection refused.*start it as `megatron-ext plan` says"):
        check_server(VllmServer(url), plan)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "not set, and rl.engine is vllm"),
        ("node7:8000", "'node7:8000' is no address of a server"),
        ("http://node7:8000/v1", "'http://node7:8000/v1' is no address of a server"),
    ],
)
def test_servers_that_are_not_named_are_asked_for(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVERS, value)
    with pytest.raises(SetupError, match=message):
        servers_of_environment()


def test_a_server_that_is_named_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVERS, "http://a:1, http://b:2/,http://a:1")
    assert [server.url for server in servers_of_environment()] == ["http://a:1", "http://b:2"]


def answer(**changes: Any) -> dict[str, Any]:
    """Two tokens, of which the second ends the text."""
    choice = {
        "token_ids": [7, 0],
        "logprobs": {"token_logprobs": [-0.5, -0.25]},
        "finish_reason": "stop",
        "weight_versions": [{"version": LABEL, "start": 0, "end": 2}],
    }
    return {"choices": [choice | changes]}


def read(said: dict[str, Any]) -> Any:
    return completion_of(said, Sample(1, 2), SAMPLING, label=LABEL, vocab_size=9, policy_version=4, url="http://a:1")


def test_an_answer_is_a_completion_with_its_log_probabilities_and_version() -> None:
    found = read(answer())
    assert (found.token_ids, found.log_probs, found.finish) == ((7, 0), (-0.5, -0.25), "stop")
    assert (found.prompt_index, found.sample_index, found.policy_version) == (1, 2, 4)


def test_a_text_that_reaches_the_limit_ends_by_length() -> None:
    said = answer(token_ids=[7, 7, 7], logprobs={"token_logprobs": [-1, -1, -1]}, finish_reason="length")
    assert read(said).finish == "length"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weight_versions": [{"version": "default"}]},
            "sampled with weights default, and rl-0/step_4 were pushed last",
        ),
        (
            {"weight_versions": [{"version": "rl-0/step_3"}, {"version": LABEL}]},
            "sampled with weights rl-0/step_3, rl-0",
        ),
        ({"weight_versions": None}, "sampled with weights that it does not name"),
        ({"logprobs": None}, "2 tokens come with 0 log-probabilities"),
        ({"logprobs": {"token_logprobs": [-0.5]}}, "2 tokens come with 1 log-probabilities"),
        ({"logprobs": {"token_logprobs": [-0.5, None]}}, "or empty ones"),
        ({"logprobs": {"token_logprobs": [-0.5, -9999.0]}}, "the logits of the server are not finite"),
        ({"logprobs": {"token_logprobs": [-0.5, 0.25]}}, "log-probabilities from -0.5 to 0.25"),
        ({"token_ids": [9, 0]}, r"ids that are none of the tokenizer's 9: \[9, 0\]"),
        ({"token_ids": [-1, 0]}, r"ids that are none of the tokenizer's 9: \[-1, 0\]"),
        ({"token_ids": []}, "no tokens, or ids"),
        ({"token_ids": [7, 3]}, "ended by 'stop' with id 3; asked were at most 3, to be ended by"),
        ({"finish_reason": "length"}, "a text of 2 tokens ended by 'length'"),
        ({"token_ids": None}, "no tokens"),
    ],
    ids=[
        *("restarted-server", "half-with-old-weights", "no-weights-named", "no-log-probs", "too-few-log-probs"),
        *("empty-log-prob", "infinite-log-prob", "positive-log-prob", "padding-of-the-vocabulary", "negative-id"),
        *("no-token", "other-end", "cut-short", "no-ids"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_does_not_count(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read(answer(**changes))


def test_what_is_no_answer_of_vllm_does_not_count() -> None:
    with pytest.raises(TrainingError, match="does not answer as vLLM does"):
        read({"choices": []})


def test_a_text_that_was_broken_off_is_asked_for_again() -> None:
    with pytest.raises(ServerDownError):
        read(answer(finish_reason="abort"))


def test_a_request_names_all_that_decides_the_text_in_fields_that_the_server_has() -> None:
    sampling = Sampling(3, temperature=0.5, top_p=0.75, top_k=2, stop_ids=frozenset({8, 0}))
    prompt = Prompt((5, 6), num_samples=2, seed=11)
    body, other = (request_of(prompt, Sample(0, number), sampling, {"9": -100.0}) for number in (0, 1))
    seeds = [body.pop("seed"), other.pop("seed")]
    assert seeds == [int(stream_key(11, number)) >> 1 for number in (0, 1)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert body == other
    assert body == {
        "prompt": [5, 6],
        "n": 1,
        "max_tokens": 3,
        **{"temperature": 0.5, "top_p": 0.75, "top_k": 2, "min_p": 0.0},
        **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
        **{"stop_token_ids": [0, 8], "ignore_eos": True, "logit_bias": {"9": -100.0}},
        **{"logprobs": 0, "return_token_ids": True, "return_tokens_as_token_ids": True},
        **{"add_special_tokens": False, "return_weight_versions": True},
    }
    assert body.keys() | {"seed"} <= set(RECORDED["fields"]["CompletionRequest"])


def test_ids_of_the_model_alone_are_biased_and_refused_where_they_are_more_than_a_server_takes() -> None:
    assert bias_of_unknown_ids(6, 8) == {"6": -100.0, "7": -100.0}
    assert len(bias_of_unknown_ids(1000, 2024)) == 1024
    with pytest.raises(SetupError, match=r"2,025 ids and the tokenizer 1,000; .* 1,024 ids, and these are 1,025"):
        bias_of_unknown_ids(1000, 2025)
