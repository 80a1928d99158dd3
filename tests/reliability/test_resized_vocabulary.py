"""A stage whose tokenizer has more tokens takes the weights of one that has fewer, rows for the new ones included."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from tokenizers import Tokenizer
from torch import Tensor

from data_tools.progress import NoProgress
from data_tools.tokenize import TokenizeJob, tokenize
from megatron_ext.__main__ import main
from megatron_ext.models.new_rows import VOCABULARY_WEIGHTS
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.training.checkpoint import begin_with_weights
from megatron_ext.training.parts import make_parts
from tests.support.distributed import run_distributed
from tests.support.rl_project import prompt_line, write_prompts
from tests.support.toy_project import Run, ToyProject

BASE = """\
extends: pretrain.yaml
data: {blend: [{source: sums.yaml, share: 1}]}
budget: {tokens: 1_024}
schedule: {warmup_tokens: 512}
"""
CHILD = """\
extends: pretrain.yaml
stage: sft
init_from: base.yaml
resize_vocabulary: true
model: {vocab_size: 1_025}                    # one row more than the 1,024 of the base: padded to 2,048
data:
  tokenizer: larger
  blend: [{source: calls.yaml, share: 1}]     # text without turns trains on all its tokens
  document_isolation: full
budget: {tokens: 0, examples: 16}
training: {sequence_length: 512, global_batch_size: 8, micro_batch_size: 1, validation_tokens: 512}
schedule: {warmup_tokens: 0, warmup_ratio: 0.1}
"""

RL = """\
extends: pretrain.yaml
stage: rl
init_from: base.yaml
resize_vocabulary: true
model: {vocab_size: 1_025}
data: {tokenizer: larger, blend: null, document_isolation: full}
budget: {tokens: 0, steps: 1}
rl:
  prompts: [{source: sums, file: prompts.jsonl, validation_prompts: 4, scorer: number}]
  samples_per_prompt: 8
  max_prompt_tokens: 32
  max_new_tokens: 64
  overlong: soft-penalty                      # a model this raw is never right, but some of its answers end early
  overlong_penalty_tokens: 64
training: {sequence_length: 96, global_batch_size: 4, micro_batch_size: 1, validation_tokens: 0}
schedule: {style: constant, warmup_tokens: 0}
"""


@pytest.fixture(scope="module")
def project(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    root = tmp_path_factory.mktemp("project") / "toy"
    shutil.copytree(toy_project.root, root, ignore=shutil.ignore_patterns("runs"))
    (root / "site.yaml").write_text(f"data_root: {root}/data\nrun_root: {root}/runs\n")
    larger = root / "data" / "larger"
    shutil.copytree(root / "data" / "tokenizer", larger)
    library = Tokenizer.from_file(str(larger / "tokenizer.json"))
    library.add_special_tokens(["<|tool|>"])
    library.save(str(larger / "tokenizer.json"))
    for name in ("calls", "calls.validation"):
        raw = root / f"{name.replace('calls', 'words')}.jsonl"
        tokenize(TokenizeJob((raw,), larger, root / "data" / name, append_eod=True), NoProgress())
    (root / "calls.yaml").write_text("source: calls\nprefix: calls\nvalidation_prefix: calls.validation\n")
    write_prompts(root / "data" / "prompts.jsonl", [prompt_line(n) for n in range(12)])
    for name, text in {"base": BASE, "child": CHILD, "rl": RL}.items():
        (root / f"{name}.yaml").write_text(text)
    return ToyProject(root)


@pytest.fixture(scope="module")
def base(project: ToyProject) -> Run:
    done = project.run(project.root / "runs", recipe=project.root / "base.yaml")
    assert done.code == 0, done.output
    return done


def rows_of_rank(root: Path, checkpoint: Path, tensor: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The rows that the base has written, and this rank's of a fresh stage that has taken them."""
    keys = [f"parallel.tensor_model_parallel_size={tensor}", "seed=7"]
    loaded = load_recipe(root / "child.yaml", overrides=keys, site=root / "site.yaml")
    plan = make_stage_plan(loaded, world_size=tensor)
    with process_groups(Launch.from_environment(), tensor_model_parallel_size=tensor) as groups:
        parts = make_parts(plan, groups)
        begin_with_weights(checkpoint, parts)
        written = dist_checkpointing.load_plain_tensors(str(checkpoint))
        named = dict(parts.model.module.named_parameters())
        return {name: (written[name], named[name].detach().clone()) for name in VOCABULARY_WEIGHTS}


def test_old_rows_are_the_bases_bit_for_bit_new_ones_their_mean_with_one_rank_and_with_two(
    project: ToyProject, base: Run
) -> None:
    checkpoint = base.stage_folder / "checkpoints" / "step_2"
    known = json.loads((base.stage_folder / "plan.json").read_text())["data"]["tokenizer_vocab_size"]
    (alone,) = run_distributed(rows_of_rank, 1, project.root, checkpoint, 1)
    halves = run_distributed(rows_of_rank, 2, project.root, checkpoint, 2)
    for name in VOCABULARY_WEIGHTS:
        old, new = alone[name]
        assert (len(old), len(new)) == (1024, 2048)
        kept = [number for number in range(1024) if number != known]  # the new token's id is the first that was free
        assert torch.equal(new[kept], old[kept])
        mean = old[:known].double().mean(0).float()
        torch.testing.assert_close(new[[known, 1024, 2047]], mean.expand(3, -1), rtol=0, atol=1e-8)
        assert torch.equal(torch.cat([half[name][1] for half in halves]), new)


def test_a_run_with_new_tokens_is_refused_without_the_key_and_records_them_with_it(
    project: ToyProject, base: Run
) -> None:
    runs, child = project.root / "runs", project.root / "child.yaml"
    refused = project.run(runs, "resize_vocabulary=false", recipe=child)
    assert refused.code == 2
    assert "new rows: add --set resize_vocabulary=true" in refused.output
    done = project.run(runs, recipe=child)
    assert done.code == 0, done.output
    facts = json.loads((done.stage_folder / "stage.json").read_text())
    known = facts["new_tokens"]["known_vocab_size"]
    assert facts["new_tokens"]["tokens"] == [{"token": "<|tool|>", "id": known}]
    assert (facts["new_tokens"]["known_rows"], facts["new_tokens"]["rows"]) == (1024, 2048)
    assert facts["meaning"]["resize_vocabulary"] == "mean of tokens"
    assert facts["parent"] == base.stage_folder.name


def test_policy_and_reference_of_an_rl_stage_have_the_new_rows_alike(project: ToyProject, base: Run) -> None:
    done = base.copied(project.root / "rl_runs")
    done = project.run(done.run_root, recipe=project.root / "rl.yaml")
    assert done.code == 0, done.output
    (line,) = done.metrics
    assert line["kl_reference"] == pytest.approx(0, abs=1e-9)
    assert line["mismatch_mean"] < 1e-5
    assert line["grad_norm"] > 0


def test_an_rl_stage_that_adds_rows_is_not_handed_off(
    project: ToyProject, base: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--site", str(project.root / "site.yaml"), "--run-root", str(base.run_root)]
    assert main(["rl-handoff", str(project.root / "rl.yaml"), "--to", str(tmp_path / "to"), *paths]) == 2
    assert "resize_vocabulary: true: the handed-off weights would have no rows" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
