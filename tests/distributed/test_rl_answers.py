r"""What an rl stage makes of answers, with a model whose answers are known.

Its layers add nothing, so a token alone decides what follows it: from the end of the prompt it spells `\boxed{3}` and
ends, or it tosses a coin between ending and a token that follows itself for ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.errors import TrainingError
from data_tools.tokenizer import Tokenizer
from megatron_ext.datasets.rollout_file import read_rollouts
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.runtime.seed import seed_everything
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.rl_step import rl_step
from megatron_ext.training.rollout_source import RolloutSource
from megatron_ext.training.step import NonFiniteError
from tests.support.distributed import run_distributed
from tests.support.rl_project import add_rl, prompt_line, write_prompts
from tests.support.toy_project import ToyProject, make_toy_project

TRUTHS = ("3", "4", "3", "5")
SET = ("rl.prompts[0].validation_prompts=4", "rl.max_new_tokens=12", "rl.kl.coefficient=0", "budget.steps=1")
BROKEN = {"scorer": "reasoning-gym", "task": {"family": "palindrome_generation", "metadata": {"letters": ["a", 3]}}}
"""This scorer cannot put its letters in order, which only answers that are palindromes bring to light."""
RAISED = "TypeError: '<' not supported between instances of 'int' and 'str'"
ANSWER = r"\boxed{3}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_toy_project(tmp_path_factory.mktemp("answers"))
    add_rl(project)
    lines = [
        prompt_line(n, id=f"p{n}", reward_model={"style": "rule", "ground_truth": TRUTHS[n % 4]}) for n in range(8)
    ]
    write_prompts(project.root / "data" / "sums.prompts.jsonl", lines)
    write_prompts(
        project.root / "data" / "broken.jsonl",
        [line | {"meta_data": BROKEN, "reward_model": {"style": "rule", "ground_truth": "ab"}} for line in lines],
    )
    return project.root


def parts_of(root: Path, groups: Any, keys: Sequence[str], world_size: int, stage: Path | None) -> Parts:
    project = ToyProject(root)
    loaded = load_recipe(root / "rl.yaml", overrides=(*SET, *keys), site=project.root / "site.yaml")
    plan = make_stage_plan(loaded, world_size=world_size)
    seed_everything(plan.seed)
    return make_parts(plan, groups, folder=stage)


def follow(parts: Parts, after: dict[int, Sequence[int]]) -> None:
    """Lets the tokens of `after` be followed by one of theirs, each as likely as the other; nothing else is known."""
    model = parts.model.module
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("out_proj.weight", "linear_proj.weight", "linear_fc2.weight")):
                parameter.zero_()
        embedding, output = model.embedding.word_embeddings.weight, model.output_layer.weight
        embedding.zero_()
        output.zero_()
        for place, (token, followers) in enumerate(after.items()):
            embedding[token, place] = 1.0
            output[list(followers), place] = 10.0
    parts.optimizer.reload_model_params()


def ids_of(parts: Parts, said: str = ANSWER) -> tuple[int, list[int], int]:
    """The last token of every prompt, those of the answer, and the one that ends it."""
    tokenizer = Tokenizer.load(parts.plan.data.tokenizer, special_tokens="parse")
    (end,) = tokenizer.encode("<|im_end|>")
    answer = [int(token) for token in tokenizer.encode(said)]
    assert isinstance(parts.cursor, RolloutSource)
    last = {row.ids[-1] for source in parts.cursor.prompts.sources for row in source.rows}
    assert len(last) == 1
    assert len({*answer, *last, end}) == len(answer) + 2, "each token is followed by one"
    return last.pop(), answer, end


def say_the_answer(parts: Parts, said: str = ANSWER) -> None:
    first, answer, end = ids_of(parts, said)
    chain = [first, *answer, end]
    follow(parts, {token: [after] for token, after in itertools.pairwise(chain)})


def toss_a_coin(parts: Parts) -> int:
    first, answer, end = ids_of(parts)
    endless = answer[0]
    follow(parts, {first: [end, endless], endless: [endless]})
    return endless


def answered(root: Path, keys: Sequence[str], world_size: int, stage: Path, said: str = ANSWER) -> dict[str, Any]:
    """The facts of a step whose every completion is the answer."""
    with process_groups(Launch.from_environment()) as groups:
        parts = parts_of(root, groups, keys, world_size, stage)
        say_the_answer(parts, said)
        try:
            parts.cursor.next_step()
            return dict(parts.cursor.facts)  # type: ignore[union-attr]
        finally:
            parts.close()


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_answer_is_judged_by_the_truth_of_its_own_prompt(root: Path, tmp_path: Path, ranks: int) -> None:
    facts = run_distributed(answered, ranks, root, (), ranks, tmp_path)[0]
    _, records = read_rollouts(tmp_path, 1)
    assert len(records) == 4 * 2
    assert {record["text"] for record in records} == {ANSWER}
    for record in records:
        assert record["parts"]["accuracy"] == float(record["truth"] == "3"), record["name"]
        assert record["truth"] == TRUTHS[int(record["name"][1:]) % 4]
    right = sum(record["truth"] == "3" for record in records) / 8
    assert 0 < right < 1
    assert facts["pass_rate"] == right
    assert facts["zero_variance_groups"] == 4


def test_thinking_that_the_chat_template_opens_belongs_to_the_answer(tmp_path: Path) -> None:
    project = make_toy_project(tmp_path)
    add_rl(project)
    lines = [prompt_line(n, reward_model={"style": "rule", "ground_truth": "3"}) for n in range(8)]
    write_prompts(tmp_path / "data" / "sums.prompts.jsonl", lines)
    template = tmp_path / "data" / "tokenizer" / "chat_template.jinja"
    begin = r"'<|im_start|>assistant\n"
    before, _, behind = template.read_text().rpartition(begin)
    template.write_text(f"{before}{begin}<think>\\n{behind}")
    run_distributed(answered, 1, tmp_path, (), 1, tmp_path / "stage", "a</think>" + ANSWER)
    _, records = read_rollouts(tmp_path / "stage", 1)
    assert {record["text"] for record in records} == {"a</think>" + ANSWER}
    assert {record["parts"]["accuracy-and-format"] for record in records} == {1.0}


def stopped(root: Path, keys: Sequence[str], world_size: int, broken_rank: int) -> str:
    """What a rank says whose weights, or those of another, hold a NaN."""
    with process_groups(Launch.from_environment()) as groups:
        parts = parts_of(root, groups, keys, world_size, None)
        say_the_answer(parts)
        if groups.dp.rank() == broken_rank:
            with torch.no_grad():
                parts.model.module.output_layer.weight.fill_(torch.nan)
        try:
            parts.cursor.next_step()
        except TrainingError as error:
            return str(error)
        finally:
            parts.close()
    return "nothing was raised"


def test_logits_that_are_not_finite_on_one_of_two_ranks_end_both_with_the_prompts_name(root: Path) -> None:
    first, second = run_distributed(stopped, 2, root, (), 2, 1)
    assert first == second
    assert first.startswith("sampling behind step 0: prompt p")
    assert "new token 0: the model's logits are not finite" in first


def diverged(root: Path) -> str:
    """What a step says whose gradient is not finite."""
    with process_groups(Launch.from_environment()) as groups:
        parts = parts_of(root, groups, ("rl.overlong=soft-penalty", "rl.overlong_penalty_tokens=12"), 1, None)
        toss_a_coin(parts)
        parts.model.module.output_layer.weight.register_hook(lambda gradient: gradient * torch.inf)
        try:
            rl_step(parts, lr=0.1, step=1)
        except NonFiniteError as error:
            return str(error)
        finally:
            parts.close()
    return "nothing was raised"


def test_an_update_that_is_not_finite_is_said_in_the_words_of_its_stage(root: Path) -> None:
    (message,) = run_distributed(diverged, 1, root)
    assert message.startswith("step 1: gradient norm is nan; the weights are those before this update.\n")
    samples = next(line for line in message.splitlines() if "samples read" in line)
    assert samples.endswith("  (prompts:place of the update's first prompt:row of completions)")
    assert " prompts:0:0 " in samples


def raised(root: Path, on_error: str, stage: Path) -> dict[str, Any] | str:
    keys = ("rl.prompts[0].file=broken.jsonl", f"rl.rewards.on_error={on_error}")
    try:
        return answered(root, keys, 1, stage)
    except TrainingError as error:
        return str(error)


def test_a_scorer_that_raises_ends_the_stage_with_the_prompts_name(root: Path, tmp_path: Path) -> None:
    (message,) = run_distributed(raised, 1, root, "stop", tmp_path)
    assert f"the scorer reasoning-gym raised {RAISED}" in message
    assert message.startswith("prompt p")
    assert "rl.rewards.on_error: count" in message


def test_a_scorer_that_raises_is_counted_and_its_message_kept(root: Path, tmp_path: Path) -> None:
    (facts,) = run_distributed(raised, 1, root, "count", tmp_path)
    assert (facts["scorer_failures"], facts["reward"]) == (8, 0.0)
    _, records = read_rollouts(tmp_path, 1)
    assert {(record["outcome"], record["detail"]) for record in records} == {("failed", RAISED)}


def masked(root: Path, stage: Path) -> tuple[float, float, int]:
    """Trained tokens of the only update, what divides it, and tokens that may follow a coin's endless side."""
    with process_groups(Launch.from_environment()) as groups:
        parts = parts_of(root, groups, ("rl.overlong=mask", "rl.aggregation=token"), 1, stage)
        endless = toss_a_coin(parts)
        try:
            batches = parts.cursor.next_step()
        finally:
            parts.close()
        mask = sum(float((batch.loss_mask > 0).sum()) for batch in batches)
        divisor = sum(float(batch.divisor.sum()) for batch in batches)  # type: ignore[attr-defined]
        learned = sum(int(((batch.loss_mask > 0) & (batch.labels == endless)).sum()) for batch in batches)
        return mask, divisor, learned


def test_completions_that_were_cut_off_are_in_neither_loss_nor_divisor_with_overlong_mask(
    root: Path, tmp_path: Path
) -> None:
    mask, divisor, learned = run_distributed(masked, 1, root, tmp_path)[0]
    _, records = read_rollouts(tmp_path, 1)
    ended = [record for record in records if record["finish"] == "stop"]
    cut = [record for record in records if record["finish"] == "length"]
    assert ended
    assert cut
    assert {record["tokens"] for record in ended} == {1}
    assert {record["tokens"] for record in cut} == {12}
    assert (mask, divisor, learned) == (len(ended), len(ended), 0)
