"""A model of ours whose weights matter, as Megatron-Core writes it, and what transformers makes of its export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_ext.convert.hf_config import TokenIds, hf_config
from megatron_ext.convert.tokenizer_files import copy_tokenizer
from megatron_ext.models.build import build_model
from megatron_ext.models.specs import local_hybrid_stack_spec
from megatron_ext.plan.stage_plan import StagePlan
from tests.support.one_process import strengthen
from tests.support.plans import make_plan

PADDED_VOCAB_SIZE = 1024
"""Of the toy tokenizer's 289 ids, by the product's rule."""


def make_hf_plan(**model: Any) -> StagePlan:
    """A plan whose vocabulary holds the toy tokenizer."""
    sizes = {"padded_vocab_size": PADDED_VOCAB_SIZE, "parameters": {}, "total_parameters": 0}
    return make_plan(model={"hybrid_layer_pattern": "M-M*M-", "vocab_size": 400, **model}, model_size=sizes)


def strong_model(plan: StagePlan, groups: ProcessGroupCollection) -> HybridModel:
    """Matrices large enough for logits that are not flat, and norms that are not 1."""
    model = strengthen(build_model(plan, groups, backend="local"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


def save_as_stock(model: Any, groups: ProcessGroupCollection, folder: Path) -> Path:
    """What Megatron-LM's `torch_dist` checkpoint holds of a model, written by core's own code."""
    folder.mkdir(parents=True)
    state = model.sharded_state_dict(metadata={"dp_cp_group": groups.dp_cp})
    dist_checkpointing.save({"model": state}, str(folder))
    return folder


def transformers_logits(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of a Hugging Face folder, in float32; every tensor of it must have been asked for."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        return [model.eval()(tokens, use_cache=False).logits for tokens in batches]


@contextlib.contextmanager
def keep_norms_apart() -> Iterator[None]:
    """Checkpoints with the norms under their own names, as specs of Megatron-Core write them that fuse none."""
    layers = local_hybrid_stack_spec.submodules
    maps = [
        layer.submodules.sharded_state_dict_keys_map
        for layer in (layers.mamba_layer, layers.attention_layer, layers.mlp_layer)
    ]
    kept = [dict(one) for one in maps]
    for one in maps:
        one.clear()
    yield
    for one, before in zip(maps, kept, strict=True):
        one.update(before)


def save_transformers_model(plan: StagePlan, folder: Path, tokenizer: Path) -> None:
    """A model that transformers drew and wrote, with matrices large enough; tied ones with equal matrices."""
    ids = TokenIds(bos=None, eos=0, pad=1)
    config = hf_config(plan.model, padded_vocab_size=PADDED_VOCAB_SIZE, ids=ids, sequence_length=4096, dtype="fp32")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() == 2:
                parameter.normal_(std=0.16)
        if plan.model.share_embeddings_and_output_weights:
            model.get_output_embeddings().weight.copy_(model.get_input_embeddings().weight)
    model.save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)
