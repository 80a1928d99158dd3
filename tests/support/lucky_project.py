r"""A project with a taught policy, whose answers to prompts are right where it is lucky.

    project = make_lucky_project(tmp_path)
    root = lucky_run_root(project, "one")       a folder of stages that holds the policy

It says now the one and now the other of `ANSWERS`, with more braces at times, and every prompt asks for 3 or for 4.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.answering_policy import teach
from tests.support.rl_project import add_rl, prompt_line, write_prompts
from tests.support.toy_project import ToyProject, make_toy_project

ANSWERS = (r"\boxed{3}", r"\boxed{4}}")
_BASE = "base"


def make_lucky_project(root: Path) -> ToyProject:
    """Writes the project below `root`, trains its base there and teaches it."""
    project = make_toy_project(root)
    add_rl(project)
    truths = [{"style": "rule", "ground_truth": str(3 + n % 2)} for n in range(32)]
    lines = [prompt_line(n, reward_model=truth) for n, truth in enumerate(truths)]
    write_prompts(project.root / "data" / "sums.prompts.jsonl", lines)
    base = project.run(project.root / _BASE)
    assert base.code == 0, base.output
    teach(project, base, ANSWERS, prompt="<|im_start|>assistant\n", blocks=0.04)
    return project


def policy_folder(project: ToyProject) -> Path:
    """The stage that holds the policy."""
    (stage,) = (project.root / _BASE / "stages").iterdir()
    return stage


def lucky_run_root(project: ToyProject, name: str) -> Path:
    """A folder of stages with the policy in it."""
    return Path(shutil.copytree(project.root / _BASE, project.root / name))
