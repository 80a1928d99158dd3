"""Conversations and an sft recipe beside those of `toy_project.py`, made by `data_tools` itself."""

from __future__ import annotations

import json
from pathlib import Path

from data_tools.chat import ChatJob, chat
from data_tools.chat_template_files import SHIPPED_TEMPLATE
from data_tools.progress import NoProgress
from tests.support.toy_project import ToyProject

RECIPE = """\
extends: pretrain.yaml
stage: sft
init_from: pretrain.yaml
data:
  blend:
    - {source: talks.yaml, share: 0.75, max_epochs: 2}
    - {source: words.yaml, share: 0.25, max_epochs: 3}    # pretraining has read of it
  document_isolation: full
budget: {tokens: 0, examples: 40}
sft: {overlong: truncate}
training:
  sequence_length: 96
  global_batch_size: 4
  micro_batch_size: 1
  validation_interval_tokens: 768
  validation_tokens: 288
schedule: {style: cosine, warmup_tokens: 0, warmup_ratio: 0.1}
checkpoint: {interval_tokens: 768, keep_last: 9}
"""


def add_chat(project: ToyProject) -> Path:
    """Writes the sources and the recipe below the project; gives the recipe."""
    root = project.root
    for name, numbers in {"talks": range(60), "talks.validation": range(60, 72)}.items():
        raw = root / f"{name}.jsonl"
        raw.write_text("".join(json.dumps({"id": f"talk-{n}", "messages": _talk(n)}) + "\n" for n in numbers))
        job = ChatJob((raw,), root / "data" / "tokenizer", root / "data" / name, chat_template=SHIPPED_TEMPLATE)
        chat(job, NoProgress())
    (root / "talks.yaml").write_text(
        "source: talks\nprefix: talks\nvalidation_prefix: talks.validation\ndomain: math\n"
    )
    recipe = root / "sft.yaml"
    recipe.write_text(RECIPE)
    return recipe


def _talk(n: int) -> list[dict[str, str]]:
    question = " ".join(f"What is {n + k} plus {k}?" for k in range(n % 3 + 1))
    return [{"role": "user", "content": question}, {"role": "assistant", "content": f"It is {2 * n % 17}."}]
