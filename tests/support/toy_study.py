"""A study of two arms that is trained in a minute; on top of `toy_project.py`.

    study = make_toy_study(tmp_path)                           builds data too
    study = add_study(make_toy_project(tmp_path))              to a project that is there

    common ─┬─ sums_base  ── sft   (arm sums-sft)     suite held after sft
            └─ words_base ── sft   (arm words-sft)

Five stages of 4 to 6 steps and two evaluations. Run with the project's root as working directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.toy_project import ToyProject, make_toy_project

MODEL = """\
name: toy_of_a_study
hybrid_layer_pattern: "M*-"
hidden_size: 32
vocab_size: 512
ffn_hidden_size: 64
num_attention_heads: 2
num_query_groups: 1
kv_channels: 16
mamba_num_heads: 4
mamba_head_dim: 16
mamba_state_dim: 16
mamba_num_groups: 2
"""
COMMON = """\
extends: pretrain.yaml
model: study_model.yaml
budget: {tokens: 3_072}                   # 6 steps of 8 x 64 tokens
training: {validation_interval_tokens: 3_072}
schedule: {warmup_tokens: 512, horizon_tokens: 6_144}
checkpoint: {interval_tokens: 1_024}
"""
SECOND = """\
extends: common.yaml
continue: common.yaml
data:
  blend: [{{source: {source}.yaml, share: 1}}]
"""
SFT = """\
extends: common.yaml
stage: sft
init_from: unresolved
data:
  blend: [{source: words.yaml, share: 1, max_epochs: 2}]    # text without turns trains on all its tokens
  document_isolation: full
budget: {tokens: 0, examples: 32}
training:
  sequence_length: 512
  global_batch_size: 2
  micro_batch_size: 1
  validation_interval_tokens: 2_048
  validation_tokens: 512
schedule: {style: cosine, warmup_tokens: 0, warmup_ratio: 0.1, horizon_tokens: null}
checkpoint: {interval_tokens: 1_024}
"""
ARM = """\
arm: {name}-sft
stages: [../common.yaml, ../{name}_base.yaml, ../sft.yaml]
"""
SUITE = """\
suite: held
tasks: [{task: held-out}]
"""
STUDY = """\
study: toy
arms: [arms/sums-sft.yaml, arms/words-sft.yaml]
varies: [data.blend]
baseline: sums-sft
evaluate: {sft: [evaluate/held.yaml]}
"""


@dataclass(frozen=True)
class ToyStudy:
    """A project with a study.

    Attributes:
        project: Data, recipes and site.
    """

    project: ToyProject

    @property
    def root(self) -> Path:
        """Where all of it lies."""
        return self.project.root

    @property
    def file(self) -> Path:
        """The study, relative to the root."""
        return Path("study.yaml")

    @property
    def site(self) -> Path:
        """Its site."""
        return self.root / "site.yaml"


def make_toy_study(root: Path) -> ToyStudy:
    """Writes project and study below `root`."""
    return add_study(make_toy_project(root))


def add_study(project: ToyProject) -> ToyStudy:
    """Writes the study beside a project's recipes."""
    files = {
        "study_model": MODEL,
        "common": COMMON,
        "sft": SFT,
        "evaluate/held": SUITE,
        "study": STUDY,
    }
    for name in ("sums", "words"):
        files[f"{name}_base"] = SECOND.format(source=name)
        files[f"arms/{name}-sft"] = ARM.format(name=name)
    for name, text in files.items():
        file = project.root / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return ToyStudy(project)
