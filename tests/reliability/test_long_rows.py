"""A stage of rows four times as long as those of the one whose weights it takes: 32,768 tokens behind 8,192."""

from __future__ import annotations

import json
import math

import pytest

from data_tools.chat import ChatJob, chat
from data_tools.chat_template_files import SHIPPED_TEMPLATE
from data_tools.progress import NoProgress
from data_tools.tokenize import TokenizeJob, tokenize
from tests.support.toy_project import Run, ToyProject

pytestmark = pytest.mark.slow

BASE = """\
extends: pretrain.yaml
data: {blend: [{source: texts.yaml, share: 1}]}
budget: {tokens: 16_384}
training:
  {sequence_length: 8_192, global_batch_size: 1, micro_batch_size: 1, validation_interval_tokens: 16_384,
   validation_tokens: 8_192}
schedule: {warmup_tokens: 0}
checkpoint: {interval_tokens: 16_384}
"""
SFT = """\
extends: base_8k.yaml
stage: sft
init_from: base_8k.yaml
data:
  blend: [{source: thoughts.yaml, share: 1}]
  document_isolation: full
budget: {tokens: 0, examples: 14}
training: {sequence_length: 32_768, validation_interval_tokens: 65_536, validation_tokens: 32_768}
checkpoint: {interval_tokens: 65_536}
"""
LONG, SHORT = 2_150, 220
"""Sums that a conversation thinks of; two long ones and twelve short ones fill two rows."""


def _sums(n: int, count: int) -> str:
    return " ".join(f"{n} plus {k % 10} is {n + k % 10}." for k in range(count))


def _thought(n: int, count: int) -> list[dict[str, str]]:
    answer = f"<think>\n{_sums(n % 10, count)}\n</think>\n\nIt is {n % 10 + 9}."
    return [{"role": "user", "content": f"What is {n % 10} plus 9?"}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def trained(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = toy_project.root
    tokenizer = root / "data" / "tokenizer"
    counts = [LONG, LONG, *[SHORT] * 12]
    for name, texts in {"texts": 20, "texts.validation": 12}.items():
        raw = root / f"{name}.jsonl"
        raw.write_text(
            "".join(json.dumps({"id": f"{name}-{n}", "text": _sums(n % 10, 150)}) + "\n" for n in range(texts))
        )
        tokenize(TokenizeJob((raw,), tokenizer, root / "data" / name, append_eod=True), NoProgress())
    for name, lengths in {"thoughts": counts, "thoughts.validation": counts[:4]}.items():
        raw = root / f"{name}.jsonl"
        talks = [{"id": f"{name}-{n}", "messages": _thought(n, count)} for n, count in enumerate(lengths)]
        raw.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
        chat(ChatJob((raw,), tokenizer, root / "data" / name, chat_template=SHIPPED_TEMPLATE), NoProgress())
    for name in ("texts", "thoughts"):
        (root / f"{name}.yaml").write_text(f"source: {name}\nprefix: {name}\nvalidation_prefix: {name}.validation\n")
    (root / "base_8k.yaml").write_text(BASE)
    (root / "sft_32k.yaml").write_text(SFT)
    run_root = tmp_path_factory.mktemp("long")
    for name in ("base_8k", "sft_32k"):
        run = toy_project.run(run_root, recipe=root / f"{name}.yaml", timeout_s=900)
        assert run.code == 0, run.output
    return run


def test_rows_of_32k_train_on_weights_of_rows_of_8k(trained: Run) -> None:
    plan = json.loads((trained.stage_folder / "plan.json").read_text())
    assert (plan["batch"]["sequence_length"], plan["sft"]["rows"], plan["batch"]["total_steps"]) == (32_768, 2, 2)
    assert plan["sft"]["padding"] < 0.05 * 2 * 32_768
    assert "begins with the weights of" in trained.output
    assert "isolation holds: 4 documents in 128 tokens" in trained.output
    assert [line["consumed_tokens"] for line in trained.metrics] == [32_768, 65_536]
    assert trained.losses[1] < trained.losses[0] < math.log(1024) - 0.3, "new weights would guess"


def test_conversations_longer_than_the_rows_of_the_base_are_read_whole(trained: Run) -> None:
    facts = json.loads((trained.stage_folder / "stage.json").read_text())
    base = json.loads((trained.run_root / "stages" / facts["parent"] / "plan.json").read_text())
    assert base["batch"]["sequence_length"] == 8_192
    (row,) = [row for row in facts["ledger"] if row["source"] == "thoughts"]
    assert row["read"] > 5 * 2 * (LONG + 6 * SHORT), "a sum has several tokens: a long one fills the base's row twice"
    assert (row["samples"], row["documents_first"], row["truncated"]) == (14, 14, 0)
