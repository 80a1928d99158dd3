"""Whether an rl stage learns: the pass rate on held-out prompts before and after, with intervals, for three seeds.

    python tests/benchmarks/rl_learning.py [--steps 60] [--seeds 1 2 3]

The task is one that a model of 0.27M parameters can learn: the largest of three digits, of 720 questions, 120 of them
held out. Copying one of the three at random is right in 33 % of the questions, always 9 in 30 %. Fine-tuning on 96
conversations shows the model the form of an answer, and some of the task. What it learns beyond that it learns from
rewards, which look at accuracy alone. Prints the curve of the reward, and asserts nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from data_tools.chat import ChatJob, chat  # noqa: E402
from data_tools.chat_template_files import SHIPPED_TEMPLATE  # noqa: E402
from data_tools.progress import NoProgress  # noqa: E402
from tests.support.rl_project import write_prompts  # noqa: E402
from tests.support.toy_project import ToyProject, make_toy_project  # noqa: E402

SFT = """\
extends: pretrain.yaml
stage: sft
init_from: pretrain.yaml
data:
  blend:
    - {source: digits.yaml, share: 1.0, max_epochs: 30}
  document_isolation: full
budget: {tokens: 0, examples: 96}
sft: {passes: 30}
training:
  sequence_length: 256
  global_batch_size: 2
  micro_batch_size: 1
  validation_interval_tokens: 1M
  validation_tokens: 768
optimizer: {lr: 3e-3, min_lr: 3e-4}
schedule: {style: cosine, warmup_tokens: 0, warmup_ratio: 0.1}
checkpoint: {interval_tokens: 1M}
"""
RL = """\
extends: sft.yaml
stage: rl
init_from: sft.yaml
data: {{blend: null}}
budget: {{examples: 0, steps: {steps}}}
sft: null
rl:
  prompts:
    - {{source: digits, file: digits.prompts.jsonl, validation_prompts: 120, domain: math, scorer: number}}
  max_epochs: 100
  samples_per_prompt: 8
  max_prompt_tokens: 48
  max_new_tokens: 16
  slots: 128
  kl: {{coefficient: 0}}
  rewards: {{accuracy: 1, accuracy_and_format: 0}}
  validation_samples: 2
training:
  global_batch_size: 16
  validation_interval_tokens: 163_840    # 20 steps of 16 x 8 x 64 tokens
  validation_tokens: 0
optimizer: {{lr: 1e-3, min_lr: 1e-3, weight_decay: 0}}
schedule: {{style: constant, warmup_ratio: 0}}
checkpoint: {{interval_tokens: 10M}}
seed: {seed}
"""


def question(digits: tuple[int, ...]) -> str:
    """What is asked."""
    return "Which is largest: {}, {} or {}?".format(*digits)


def make_project(root: Path) -> ToyProject:
    """Data, tokenizer and recipes, and the weights of the base and of fine-tuning."""
    project = make_toy_project(root)
    every = list(itertools.permutations(range(10), 3))
    random.Random(0).shuffle(every)
    rows = [
        {
            "id": "{}{}{}".format(*digits),
            "messages": [
                {"role": "user", "content": question(digits)},
                {"role": "assistant", "content": f"\\boxed{{{max(digits)}}}"},
            ],
        }
        for digits in every
    ]
    for name, some in {"digits": rows[:96], "digits.validation": rows[96:120]}.items():
        raw = root / f"{name}.jsonl"
        raw.write_text("".join(json.dumps(row) + "\n" for row in some))
        job = ChatJob((raw,), root / "data" / "tokenizer", root / "data" / name, chat_template=SHIPPED_TEMPLATE)
        chat(job, NoProgress())
    prefixes = "prefix: digits\nvalidation_prefix: digits.validation\n"
    (root / "digits.yaml").write_text(f"source: digits\n{prefixes}domain: math\n")
    write_prompts(root / "data" / "digits.prompts.jsonl", [_prompt(digits) for digits in every[96:]])
    (root / "sft.yaml").write_text(SFT)
    for recipe in ("pretrain.yaml", "sft.yaml"):
        _run(project, root / recipe)
    return project


def _prompt(digits: tuple[int, ...]) -> dict[str, Any]:
    return {
        "id": "{}{}{}".format(*digits),
        "data_source": "digits",
        "prompt": [{"role": "user", "content": question(digits)}],
        "reward_model": {"style": "rule", "ground_truth": str(max(digits))},
        "meta_data": {},
    }


def _run(project: ToyProject, recipe: Path) -> str:
    done = project.run(project.root / "runs", recipe=recipe, timeout_s=3600)
    if done.code:
        sys.exit(done.output)
    return done.output


def main() -> None:
    """Trains each seed, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder) / "project")
        for seed in arguments.seeds:
            recipe = project.root / f"rl_{seed}.yaml"
            recipe.write_text(RL.format(steps=arguments.steps, seed=seed))
            output = _run(project, recipe)
            rates = [line for line in output.splitlines() if "held-out pass rate" in line]
            plans = [
                file for file in project.root.glob("runs/stages/rl-*/plan.json") if recipe.name in file.read_text()
            ]
            metrics = (plans[0].parent / "metrics.jsonl").read_text().splitlines()
            rewards = [json.loads(line)["reward"] for line in metrics]
            tens = [rewards[at : at + 10] for at in range(0, len(rewards), 10)]
            print(f"seed {seed}")
            print(*rates, sep="\n")
            print("reward, by tens of steps:", *(f"{fmean(some):.2f}" for some in tens), flush=True)


if __name__ == "__main__":
    main()
