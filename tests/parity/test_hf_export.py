"""An exported checkpoint computes in transformers what it computes here; an imported one the same the other way.

Float32, logits up to 3 or so within 1e-5: some 30 roundings of 2.4e-7 times the depth. Lengths below, at and far above
the chunks in which transformers (128) and this project (64) scan. Checkpoints are written by Megatron-Core's own code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.convert.export import export_checkpoint
from tests.support.hf_models import make_hf_plan, save_as_stock, strong_model, transformers_logits
from tests.support.one_process import logits_of, one_process, random_tokens
from tests.support.toy_project import ToyProject

TOLERANCE = 1e-5
LENGTHS = (1, 5, 64, 128, 300, 700)
SHAPES = (
    {},
    {"share_embeddings_and_output_weights": True},
    {"mamba_num_groups": 1},
    {"mamba_num_groups": 4},
    {"num_query_groups": 4},
    {"num_query_groups": 1},
    {"layernorm_epsilon": 1e-3},
    {"hybrid_layer_pattern": "*-*-"},
    {"hybrid_layer_pattern": "*-*-", "position_embedding_type": "rope", "rotary_base": 500},
    {"hybrid_layer_pattern": "*-*-", "position_embedding_type": "rope", "share_embeddings_and_output_weights": True},
)


@pytest.fixture(scope="module")
def groups() -> Iterator[ProcessGroupCollection]:
    with one_process() as collection:
        yield collection


def name_of(shape: dict[str, object]) -> str:
    return "-".join(f"{key}={value}" for key, value in shape.items()) or "defaults"


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_an_export_has_the_logits_of_its_checkpoint(
    shape: dict[str, object], groups: ProcessGroupCollection, toy_project: ToyProject, tmp_path: Path
) -> None:
    plan = make_hf_plan(**shape)
    model = strong_model(plan, groups)
    stock = save_as_stock(model, groups, tmp_path / "iter_0000001")
    tokenizer = toy_project.root / "data" / "tokenizer"
    export_checkpoint(stock, tmp_path / "hf", model=plan.model, tokenizer=tokenizer)
    for length in LENGTHS:
        tokens = random_tokens(2, length, vocab_size=400)
        theirs = transformers_logits(tmp_path / "hf", tokens)
        assert theirs.abs().max() > 1  # flat logits would agree whatever the layers do
        torch.testing.assert_close(logits_of(model, tokens), theirs, rtol=0, atol=TOLERANCE)
