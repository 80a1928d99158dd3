"""From a `torch_dist` checkpoint of any layout to a folder that `transformers` loads.

    DIR/config.json, weights, tokenizer                  hf_folder.py
    DIR/README.md                                        model_card.py

Weights go through one tensor at a time: a few of the largest are in memory, never the model. The folder is written
under another name and renamed when it is whole and, if that was asked, verified.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.convert.giver import Giver, open_giver
from megatron_ext.convert.hf_config import Dtype, require_architecture
from megatron_ext.convert.hf_folder import DTYPES, HfContent, folder_in_writing, write_hf_folder
from megatron_ext.convert.model_card import model_card
from megatron_ext.convert.safetensors_files import SHARD_BYTES
from megatron_ext.convert.tokenizer_files import chat_template
from megatron_ext.recipe.layer_pattern import MAMBA
from megatron_ext.recipe.schema import ModelRecipe


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        path: The folder.
        dtype: Of its weights.
        parameters: Numbers in its tensors; a tied output layer counts twice.
        notes: Sentences that the user should read.
        difference: Largest one between logits of the two models; None where it was not asked for.
    """

    path: Path
    dtype: Dtype
    parameters: int
    notes: tuple[str, ...]
    difference: float | None = None


def export_checkpoint(
    checkpoint: Path,
    to: Path,
    *,
    dtype: Dtype | None = None,
    verify: bool = False,
    model: ModelRecipe | None = None,
    tokenizer: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    say: Callable[[str], None] = print,
) -> Exported:
    """Writes a checkpoint as a Hugging Face model.

    Needs no process group, no GPU and no layout; call it on one rank only.

    Args:
        checkpoint: A `step_N` folder; or a `torch_dist` checkpoint of Megatron-LM, with `model` and `tokenizer`.
        to: Folder to be made; it must not exist.
        dtype: Of the written weights; None takes that of the stage, or of the widest tensor of Megatron-LM.
        verify: Whether logits of the two models are compared before the folder gets its name.
        model: Of a checkpoint of Megatron-LM.
        tokenizer: Likewise.
        shard_bytes: Of one safetensors file at most.
        say: Takes what the verification has found.

    Raises:
        DataError: The checkpoint is damaged, its tensors are not its model's, or the logits differ.
        RecipeError: transformers has no class that computes this model.
        UsageError: `to` is there already.
        DataError: Another process is exporting into `to`.
    """
    giver = open_giver(checkpoint, model=model, tokenizer=tokenizer)
    require_architecture(giver.model)
    dtype = dtype or _stored_dtype(giver)
    notes = _notes(giver, dtype)
    with folder_in_writing(to) as writing:
        content = HfContent(
            giver.model,
            giver.padded_vocab_size,
            giver.tokenizer,
            giver.facts,
            giver.plan.batch.sequence_length if giver.plan is not None else None,
            dtype,
        )
        read = functools.lru_cache(maxsize=1)(giver.weights.read)  # q, k and v lie in one tensor
        parameters = write_hf_folder(writing, content, read, shard_bytes=shard_bytes)
        (writing / "README.md").write_text(model_card(giver, dtype=dtype), encoding="utf-8")
        difference = None
        if verify:
            from megatron_ext.convert.verify import verify_export

            difference = verify_export(giver, writing, dtype=DTYPES[dtype], say=say)
    return Exported(to, dtype, parameters, notes, difference)


def _notes(giver: Giver, dtype: Dtype) -> tuple[str, ...]:
    notes = []
    if chat_template(giver.tokenizer) is None:
        without = "holds no chat template: the exported model goes on with texts, and answers no chats"
        notes.append(f"{giver.tokenizer} {without}")
    wide, count = giver.weights.num_float32, len(giver.weights.tensors)
    if giver.plan is None and MAMBA in giver.model.hybrid_layer_pattern and giver.model.layernorm_epsilon != 1e-5:
        notes.append(
            f"layernorm_epsilon {giver.model.layernorm_epsilon:g}: the gated norm of Megatron-LM's Mamba layers has "
            "1e-5 whatever it was told, and no class of transformers can have two; logits will differ from its"
        )
    if dtype == "bf16" and 0 < wide < count:
        notes.append(f"{wide} of {count} tensors are stored in fp32 and were rounded to bf16; --dtype fp32 keeps them")
    return tuple(notes)


def _stored_dtype(giver: Giver) -> Dtype:
    """Of the stage; of a checkpoint without a plan, of its widest tensor."""
    if giver.plan is not None:
        return giver.plan.precision
    return "fp32" if giver.weights.num_float32 else "bf16"
