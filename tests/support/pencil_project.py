"""A recipe with data whose every count a pencil can check; made without torch and without training a tokenizer.

    project = make_pencil_project(tmp_path)
    project.load("budget.tokens=1280")          the recipe with overrides
    project.write_dataset("a", tokens=500)      another dataset in place of the first

Source `a` has 1,000 tokens, `b` 400, both in documents of 10; 64 are held out of each. A sample is 16
tokens, a step 4 samples, the budget 10 steps: 40 samples, 30 of `a` and 10 of `b`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import RecipeError, UserError
from data_tools.indexed import IndexedWriter
from data_tools.manifest import Manifest, TokenizerRecord, write_manifest
from data_tools.tokenizer import fingerprint
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import LoadedRecipe, load_recipe

VOCAB_SIZE = 100
DOCUMENT = 10
MODEL = """\
name: pencil
hybrid_layer_pattern: "M-M*M-"
hidden_size: 64
vocab_size: 100
ffn_hidden_size: 128
num_attention_heads: 4
num_query_groups: 2
kv_channels: 16
mamba_num_heads: 8
mamba_head_dim: 16
mamba_state_dim: 16
mamba_num_groups: 2
"""
RECIPE = """\
stage: pretrain
model: model.yaml
data:
  tokenizer: tokenizer
  blend:
    - {source: a.yaml, share: 0.75}
    - {source: b.yaml, share: 0.25}
budget: {tokens: 640}
training:
  sequence_length: 16
  global_batch_size: 4
  validation_interval_tokens: 320
  validation_tokens: 48
optimizer: {lr: 3e-3, min_lr: 3e-4}
schedule: {style: wsd, warmup_tokens: 128, decay_tokens: 256}
precision: fp32
checkpoint: {interval_tokens: 320}
"""


@dataclass(frozen=True)
class PencilProject:
    """A folder with recipe, model, sources, site, tokenizer and datasets."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The stage recipe."""
        return self.root / "pretrain.yaml"

    @property
    def site(self) -> Path:
        """The site whose paths lead into this folder."""
        return self.root / "site.yaml"

    def edit(self, name: str, old: str, new: str) -> None:
        """Replaces the one place of a file where `old` stands."""
        file = self.root / name
        text = file.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
        file.write_text(text.replace(old, new))

    def load(self, *overrides: str) -> LoadedRecipe:
        """The recipe at this site."""
        return load_recipe(self.recipe, overrides=overrides, site=self.site)

    def plan(self, *overrides: str, world_size: int | None = None) -> StagePlan:
        """The plan of the recipe at this site."""
        return make_stage_plan(self.load(*overrides), world_size=world_size)

    def write_source(self, name: str, *, tokens: int) -> None:
        """A source file, its dataset, and 64 held-out tokens."""
        (self.root / f"{name}.yaml").write_text(
            f"source: {name}\nprefix: {name}\nvalidation_prefix: {name}.validation\ndomain: math\n"
        )
        self.write_dataset(name, tokens=tokens)
        self.write_dataset(f"{name}.validation", tokens=64)

    def write_dataset(self, name: str, *, tokens: int, largest: int = VOCAB_SIZE - 1) -> Manifest:
        """PREFIX.bin, .idx and manifest of `tokens` ids that differ from every other name's."""
        prefix = self.root / "data" / name
        start = sum(name.encode()) % largest
        ids = (np.arange(tokens) + start) % largest
        if tokens:
            ids[0] = largest
        lengths = np.full(-(-tokens // DOCUMENT), DOCUMENT)
        if tokens % DOCUMENT:
            lengths[-1] = tokens % DOCUMENT
        writer = IndexedWriter(Path(f"{prefix}.bin"), dtype="uint16")
        writer.add_documents(ids, lengths)
        pair = writer.finish(Path(f"{prefix}.idx"))
        tokenizer = self.root / "data" / "tokenizer"
        manifest = Manifest(
            documents=len(lengths),
            tokens=tokens,
            rejected=0,
            rejected_by_reason={},
            bin_bytes=pair.bin_bytes,
            idx_bytes=pair.idx_bytes,
            bin_sha256=pair.bin_sha256,
            idx_sha256=pair.idx_sha256,
            dtype="uint16",
            max_token_id=pair.max_token_id,
            tokens_per_block=[tokens] if tokens else [],
            append_eod=True,
            eod_id=0,
            tokenizer=TokenizerRecord(fingerprint=fingerprint(tokenizer), vocab_size=VOCAB_SIZE, name="tokenizer"),
            sources=[],
            command="test",
            versions={},
            created="2026-01-01T00:00:00Z",
        )
        write_manifest(prefix, manifest)
        return manifest


def make_pencil_project(root: Path) -> PencilProject:
    """Writes the project below `root`."""
    write_tokenizer(root / "data" / "tokenizer")
    project = PencilProject(root)
    (root / "model.yaml").write_text(MODEL)
    (root / "pretrain.yaml").write_text(RECIPE)
    (root / "site.yaml").write_text(f"data_root: {root}/data\nrun_root: {root}/runs\n")
    project.write_source("a", tokens=1_000)
    project.write_source("b", tokens=400)
    return project


def refused(call: Callable[[], object], kind: type[UserError] = RecipeError) -> str:
    """The message with which a call refuses."""
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def record(stage: StagePlan, run_root: Path) -> StagePlan:
    """Leaves a stage's plan where its run would."""
    folder = run_root / "stages" / stage.stage_id
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(stage.model_dump_json())
    return stage


def write_tokenizer(folder: Path, *, vocab_size: int = VOCAB_SIZE) -> None:
    """A folder that describes itself as a tokenizer; it encodes nothing."""
    folder.mkdir(parents=True)
    vocabulary = {"<|endoftext|>": 0} | {f"t{number}": number for number in range(1, vocab_size)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
