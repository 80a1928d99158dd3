"""A model of ours whose weights matter, as Megatron-Core writes it, and what transformers makes of its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_ext.models.build import build_model
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


def transformers_logits(folder: Path, tokens: Tensor) -> Tensor:
    """Logits of an exported folder, in float32; every tensor of it must have been asked for."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        logits: Tensor = model.eval()(tokens, use_cache=False).logits
    return logits
