"""Packed rows of a blend, as training reads them, give every document the loss that it has alone.

The bound is that of `test_isolation.py` for fp32, 1e-5, for losses up to 10.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.models.build import build_model
from megatron_ext.objectives.pretrain import PretrainObjective
from tests.support.one_process import one_process, strengthen
from tests.support.sources import plan_reading, write_source

LENGTHS = [3, 30, 1, 12, 7, 9, 70, 2, 20, 5, 33, 18]


@pytest.mark.parametrize("long_documents", ["split", "truncate"])
def test_a_packed_document_has_the_losses_that_it_has_alone(tmp_path: Path, long_documents: str) -> None:
    generator = np.random.default_rng(5)
    documents = [[*generator.integers(1, 119, n - 1).tolist(), 0] for n in LENGTHS]
    write_source(tmp_path / "a", documents)
    plan = plan_reading(
        {"a": (tmp_path / "a", 8)},
        global_batch_size=8,
        micro_batch_size=4,
        batch={"sequence_length": 32},
        data={
            "packing": "best_fit",
            "long_documents": long_documents,
            "document_isolation": "full",
            "store": str(tmp_path),
        },
    )
    cursor = BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1)
    compared = 0
    with one_process() as groups, torch.no_grad():
        model = strengthen(build_model(plan, groups))
        for batch in cursor.next_step():
            output, _ = PretrainObjective(1).forward_step(iter([batch]), model)
            losses = output.view_as(batch.labels)
            for row, sample_id in enumerate(batch.sample_ids):
                place = 0
                for span in cursor.locate(sample_id):
                    piece = torch.tensor([documents[span.document][span.start : span.start + span.length]])
                    inputs = min(span.length, 32 - place)
                    labels = torch.cat([piece[:, 1:], torch.zeros(1, 1, dtype=torch.int64)], dim=1)[:, :inputs]
                    alone = model(piece[:, :inputs], torch.arange(inputs)[None], None, labels=labels)
                    is_trained = batch.loss_mask[row, place : place + inputs] > 0
                    assert int(is_trained.sum()) == span.length - 1, "every label of a piece but the one that it lacks"
                    packed = losses[row, place : place + inputs]
                    torch.testing.assert_close(packed[is_trained], alone[0][is_trained], rtol=0, atol=1e-5)
                    place, compared = place + inputs, compared + int(is_trained.sum())
    assert compared > 150
