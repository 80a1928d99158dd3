"""Prompts and an rl recipe beside those of `toy_project.py` and `toy_chat.py`.

    recipe = add_rl(make_toy_project(tmp_path))

The model repeats a word of the question, if it is lucky. 24 prompts are in the set, 8 are held out by their content.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.toy_chat import add_chat
from tests.support.toy_project import ToyProject

RECIPE = """\
extends: pretrain.yaml
stage: rl
init_from: {parent}
data: {{blend: null, document_isolation: full}}
budget: {{tokens: 0, steps: 6}}
rl:
  prompts:
    - {{source: sums, file: sums.prompts.jsonl, validation_prompts: 8, domain: math, scorer: number}}
  max_epochs: 2
  samples_per_prompt: 2
  max_prompt_tokens: 32
  max_new_tokens: 8
  slots: 4
  rewards: {{accuracy: 1, format: 0, accuracy_and_format: 0}}
training:
  sequence_length: 96
  global_batch_size: 4
  micro_batch_size: 1
  validation_interval_tokens: 960        # 3 steps of 4 x 2 x 40 tokens
  validation_tokens: 0
optimizer: {{lr: 1e-3, min_lr: 1e-3}}
schedule: {{style: constant, warmup_tokens: 0}}
checkpoint: {{interval_tokens: 960, keep_last: 9}}
"""


def prompt_line(n: int, **changes: Any) -> dict[str, Any]:
    """A prompt in the schema of Nemotron-CrossThink."""
    line = {
        "id": f"sum-{n}",
        "data_source": "toy",
        "prompt": [{"role": "user", "content": f"What is {n} plus 1?"}],
        "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
        "meta_data": {"family": "even" if n % 2 == 0 else "odd"},
    }
    return line | changes


def write_prompts(path: Path, lines: list[dict[str, Any]]) -> None:
    """A file of prompts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def add_rl(project: ToyProject, *, parent: str = "pretrain.yaml") -> Path:
    """Writes the prompts and the recipe below the project; gives the recipe."""
    if parent == "sft.yaml":
        add_chat(project)
    write_prompts(project.root / "data" / "sums.prompts.jsonl", [prompt_line(n) for n in range(32)])
    recipe = project.root / "rl.yaml"
    recipe.write_text(RECIPE.format(parent=parent))
    return recipe
