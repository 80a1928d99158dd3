"""An sft recipe over conversations that a pencil can add up; on top of `pencil_project.py`.

    project = make_sft_project(tmp_path)
    project.plan("sft.passes=2")
    write_chat(project, "c", [(6, [(2, 6)])])       another dataset in the place of the first

Source `c` has 12 conversations: of 4 tokens 2 trained, 8 times, and of 12 tokens 9 trained, 4 times. Source `d`
has 4 texts of 7 tokens without turns. A row is 16 tokens, a step 2 rows; 12 of `c` and 4 of `d` are drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.chat_template_files import SHIPPED_TEMPLATE
from data_tools.indexed import IndexedWriter
from data_tools.loss_mask import LossMasks, mask_path
from data_tools.manifest import ChatRecord, Manifest, TokenizerRecord, write_manifest
from data_tools.tokenizer import fingerprint
from tests.support.pencil_project import VOCAB_SIZE, PencilProject, make_pencil_project

RECIPE = """\
stage: sft
init_from: base.yaml
model: model.yaml
data:
  tokenizer: tokenizer
  blend:
    - {source: c.yaml, share: 0.75}
    - {source: d.yaml, share: 0.25}
  document_isolation: full
budget: {examples: 16}
training:
  sequence_length: 16
  global_batch_size: 2
  validation_interval_tokens: 64
  validation_tokens: 48
optimizer: {lr: 3e-3, min_lr: 3e-4}
schedule: {style: cosine, warmup_ratio: 0.25}
precision: fp32
checkpoint: {interval_tokens: 64}
"""
Talk = tuple[int, list[tuple[int, int]]]
"""Tokens of a conversation, and its runs of trained tokens."""

SHORT: Talk = (4, [(2, 4)])
LONG: Talk = (12, [(1, 4), (6, 12)])


def make_sft_project(root: Path) -> PencilProject:
    """Writes the project below `root`."""
    project = make_pencil_project(root)
    project.recipe.rename(root / "base.yaml")  # gives the weights; reads sources a and b
    project.recipe.write_text(RECIPE)
    for name in "cd":
        prefixes = f"prefix: {name}\nvalidation_prefix: {name}.validation\n"
        (root / f"{name}.yaml").write_text(f"source: {name}\n{prefixes}domain: {'math' if name == 'c' else 'code'}\n")
    write_chat(project, "c", [SHORT] * 8 + [LONG] * 4)
    write_chat(project, "c.validation", [SHORT, LONG, LONG])
    write_chat(project, "d", [(7, None)] * 4)
    write_chat(project, "d.validation", [(7, None), (5, None)])
    return project


def write_chat(
    project: PencilProject,
    name: str,
    talks: Sequence[tuple[int, list[tuple[int, int]] | None]],
    *,
    thinking: dict[int, tuple[int, int]] | None = None,
    template: str | None = None,
) -> Manifest:
    """PREFIX.bin, .idx, .mask and manifest; without runs, texts without turns and no mask.

    Args:
        project: Where.
        name: PREFIX below its data.
        talks: Tokens and runs of each; ids go on from one to the next.
        thinking: Ranges of thinking, by number.
        template: Text of the chat template; None for the one that is shipped.
    """
    prefix = project.root / "data" / name
    lengths = np.array([length for length, _ in talks])
    ids = (np.arange(int(lengths.sum())) * 7 + sum(name.encode())) % (VOCAB_SIZE - 1) + 1
    writer = IndexedWriter(Path(f"{prefix}.bin"), dtype="uint16")
    writer.add_documents(ids, lengths)
    pair = writer.finish(Path(f"{prefix}.idx"))
    runs = [list(of_one) for _, of_one in talks if of_one is not None]
    has_turns = bool(runs)
    tokenizer = project.root / "data" / "tokenizer"
    manifest = Manifest(
        documents=len(lengths),
        tokens=int(lengths.sum()),
        rejected=0,
        rejected_by_reason={},
        bin_bytes=pair.bin_bytes,
        idx_bytes=pair.idx_bytes,
        bin_sha256=pair.bin_sha256,
        idx_sha256=pair.idx_sha256,
        dtype="uint16",
        max_token_id=pair.max_token_id,
        tokens_per_block=[int(lengths.sum())],
        append_eod=not has_turns,
        eod_id=0,
        tokenizer=TokenizerRecord(fingerprint=fingerprint(tokenizer), vocab_size=VOCAB_SIZE, name="tokenizer"),
        sources=[],
        chat=_write_masks(prefix, runs, thinking or {}, template) if has_turns else None,
        command="test",
        versions={},
        created="2026-01-01T00:00:00Z",
    )
    write_manifest(prefix, manifest)
    return manifest


def _write_masks(
    prefix: Path, runs: list[list[tuple[int, int]]], thinking: dict[int, tuple[int, int]], template: str | None
) -> ChatRecord:
    flat: Any = [run for of_one in runs for run in of_one]
    masks = LossMasks(
        first_run=np.cumsum([0, *map(len, runs)]),
        thinking=np.array([thinking.get(number, (0, 0)) for number in range(len(runs))], np.int32),
        runs=np.array(flat, np.int32).reshape(-1, 2),
    )
    content = masks.to_bytes()
    mask_path(prefix).write_bytes(content)
    text = SHIPPED_TEMPLATE.read_text() if template is None else template
    return ChatRecord(
        version="2",
        template="chat_template.jinja",
        template_sha256=hashlib.sha256(text.encode()).hexdigest(),
        train_on=["assistant"],
        thinking="keep",
        trained_tokens=masks.trained_tokens,
        mask_bytes=len(content),
        mask_sha256=hashlib.sha256(content).hexdigest(),
    )
