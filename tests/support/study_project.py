"""A study whose every count a pencil can check; on top of `sft_project.py`, in the working directory.

    project = make_study_project()
    make_study_plan("study.yaml")

Four arms: `plain` and `more` pretrain 640 tokens of `base.yaml` and 640 tokens more, and `-chat` fine-tunes each.
`plain` goes on with the blend of `base.yaml`; of `more` half is `b`, whose 400 tokens are then read 1.2 times, 160 and
320 tokens. So 10 stages of arms are 5 stages.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.pencil_project import PencilProject
from tests.support.sft_project import make_sft_project

STUDY = """\
study: pencil
matrix:
  - axes:
      base: {plain: [base.yaml, plain.yaml], more: [base.yaml, more.yaml]}
      sft: {none: null, chat: chat.yaml}
varies: [data.blend]
confounds:
  - {key: data.repeated, stage: pretrain, arms: [more*], why: b is small}
baseline: plain-chat
evaluate: {sft: [suite.yaml]}
"""
MORE = """\
extends: base.yaml
continue: base.yaml
data:
  blend:
    - {source: a.yaml, share: 0.5}
    - {source: b.yaml, share: 0.5, max_epochs: 2}
"""
ARM = """\
arm: more-chat
stages: [base.yaml, more.yaml, chat.yaml]
"""


def make_study_project() -> PencilProject:
    """Writes the project into the working directory, whose default site leads to it."""
    project = make_sft_project(Path())
    project.recipe.rename("chat.yaml")
    project.edit("chat.yaml", "init_from: base.yaml", "init_from: unresolved")
    project.edit("base.yaml", "warmup_tokens: 128,", "warmup_tokens: 128, horizon_tokens: 1_280,")
    Path("plain.yaml").write_text("extends: base.yaml\ncontinue: base.yaml\n")
    Path("more.yaml").write_text(MORE)
    Path("more-chat.yaml").write_text(ARM)
    Path("study.yaml").write_text(STUDY)
    Path("suite.yaml").write_text("suite: pencils\ntasks:\n  - {task: held-out}\n")
    return project
