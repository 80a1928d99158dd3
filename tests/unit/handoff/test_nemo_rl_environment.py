"""Our environment and launcher of NeMo-RL against what that version is recorded to import, call and take."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.prompts import PromptRow
from megatron_ext.handoff import nemo_rl, scoring, write
from megatron_ext.handoff.scoring import encode_question
from tests.support.nemo_rl_stand_ins import FACTS, NEMO_RL, install_stand_ins
from tests.support.rl_project import prompt_line

MODULE = "megatron_ext.handoff.nemo_rl_environment"
REWARDS = {"accuracy": 1, "format": 0.25, "accuracy_and_format": 0, "timeout_s": 20, "on_error": "stop"}
REPLIES = (
    ("It is \\boxed{4}.", 1.0),
    ("<think>3</think>It is \\boxed{5}.", 0.25),
    ("<think>3</think>\\boxed{4}", 1.25),
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class, as `create_env` makes it: with its part of the configuration alone."""
    install_stand_ins(monkeypatch)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    made = importlib.import_module(MODULE).RewardEnvironment(REWARDS)
    yield made
    made.shutdown()
    sys.modules.pop(MODULE)


def logs_of(replies: list[str]) -> tuple[list[list[dict[str, str]]], list[dict[str, str]]]:
    """Messages and metadata as `calculate_rewards` gives them."""
    record = prompt_line(3) | {"meta_data": {"scorer": "number"}}
    question = encode_question(PromptRow("0" * 32, "math", "", record, (1,), opening=""))
    user = dict(zip(NEMO_RL["keys_of_turns"], ("user", "What is 3 plus 1?"), strict=True))
    said = [dict(zip(NEMO_RL["keys_of_turns"], ("assistant", reply), strict=True)) for reply in replies]
    return [[user, one] for one in said], [{NEMO_RL["keys_of_metadata"][0]: question} for _ in replies]


def test_a_step_gives_one_reward_a_conversation_and_ends_each(environment: Any) -> None:
    logs, metadata = logs_of([reply for reply, _ in REPLIES])
    observations, given_back, stop_strings, rewards, terminateds, answers = environment.step(logs, metadata)
    torch.testing.assert_close(rewards, torch.tensor([reward for _, reward in REPLIES]))
    assert [bool(ended) for ended in terminateds] == [True] * 3
    assert observations == [{"role": "environment", "content": ""}] * 3
    assert (given_back, stop_strings, answers) == (metadata, [None] * 3, None)


def test_an_answer_in_several_turns_is_scored_whole_and_the_question_never(environment: Any) -> None:
    ((user, _),), metadata = logs_of([""])
    parts = [{"role": "assistant", "content": part} for part in ("It is \\box", "ed{4}.")]
    asked = user | {"content": "<think>5</think>"}
    assert environment.step([[asked, *parts]], metadata).rewards.tolist() == [1.0]


def test_the_mean_reward_of_a_batch_is_what_is_validated_by(environment: Any) -> None:
    batch = {"rewards": torch.tensor([1.0, 0.0, 0.25, 0.75])}
    given_back, metrics = environment.global_post_process_and_metrics(batch)
    assert given_back is batch
    assert metrics == {"accuracy": 0.5, "num_problems_in_batch": 4.0}


def test_its_methods_take_what_they_are_called_with(environment: Any) -> None:
    expected = NEMO_RL["abstract_methods"] | {name: [] for name in NEMO_RL["called_without_arguments"]}
    found = {name: list(inspect.signature(getattr(environment, name)).parameters) for name in expected}
    assert found == expected


def test_no_name_is_imported_that_the_version_does_not_have() -> None:
    sources = [Path(importlib.util.find_spec(MODULE).origin).read_text(), write._NEMO_LAUNCHER]  # type: ignore[union-attr, arg-type]
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nemo_rl"):
                assert {name.name for name in node.names} <= set(NEMO_RL["names"][node.module])
            if isinstance(node, ast.Import):
                assert not any(name.name.startswith("nemo_rl") for name in node.names)


def test_the_launcher_registers_our_environment_before_it_runs_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registered = install_stand_ins(monkeypatch)
    launcher = tmp_path / nemo_rl.LAUNCHER
    launcher.write_text(write._NEMO_LAUNCHER)
    script = tmp_path / NEMO_RL["script"]
    script.parent.mkdir()
    script.write_text(
        "from nemo_rl.environments.utils import ENV_REGISTRY\n"
        "from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    Path('seen.txt').write_text(' '.join(ENV_REGISTRY))\n"
    )
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(launcher), run_name="__main__")
    assert (tmp_path / "seen.txt").read_text() == nemo_rl.ENVIRONMENT
    ours = f"{MODULE}.RewardEnvironment"
    assert registered == {"environments": {nemo_rl.ENVIRONMENT: ours}, "executables": {ours: "SYSTEM"}}


def test_verl_calls_our_reward_function_by_keywords_and_takes_its_score() -> None:
    verl = FACTS["verl"]
    compute_score = scoring.make_compute_score(**REWARDS)
    _, (about,) = logs_of([""])
    known = {"question": about["ground_truth"], **dict.fromkeys(verl["added_to_extra_info"])}
    values = dict(zip(verl["keywords"], ("sums", REPLIES[0][0], "4", known), strict=True))
    for more in ((), verl["keywords_with_a_reward_model"]):
        found = compute_score(**values, **dict.fromkeys(more))
        assert set(verl["needed_of_the_result"]) <= found.keys()
        assert found["score"] == 1.0
