"""Rows of an sft stage, as its cursor makes them, give each conversation the losses and gradients that it has alone.

fp64, attention, convolution and SSM, within 1e-9: the same products are summed in another order. The conversations
of a row begin at every offset of a chunk, one row holds fifty, and padding follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel
from torch import Tensor

from data_tools.inspection import open_dataset
from megatron_ext.datasets.batch import Batch
from megatron_ext.datasets.conversations import ConversationCursor
from megatron_ext.models.build import build_model
from megatron_ext.models.ssd import DEFAULT_CHUNK_SIZE
from megatron_ext.objectives.sft import SftObjective
from tests.support.one_process import one_process, strengthen
from tests.support.sft_project import Talk, make_sft_project, write_chat

TOLERANCE = 1e-9
TALKS: dict[str, list[Talk]] = {
    "every offset of a chunk": [(DEFAULT_CHUNK_SIZE + 1, [(2, 20), (30, 60)])] * DEFAULT_CHUNK_SIZE,
    "fifty": [(2 + number, [(1, 2 + number)]) for number in range(50)],
    "one": [(DEFAULT_CHUNK_SIZE + 9, [(3, 70)])],
}


@dataclass(frozen=True)
class Made:
    """A model, the only row of a stage, and ids and trained runs of its conversations in the row's order."""

    model: HybridModel
    row: Batch
    conversations: list[tuple[list[int], list[tuple[int, int]]]]


@pytest.fixture(scope="module", params=TALKS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    talks = TALKS[request.param]
    project = make_sft_project(tmp_path_factory.mktemp("rows"))
    write_chat(project, "c", talks)
    length = sum(tokens for tokens, _ in talks) + 7
    blend = f"data.blend=[{{source: {project.root}/c.yaml, share: 1.0}}]"
    plan = project.plan(blend, f"budget.examples={len(talks)}", f"training.sequence_length={length}")
    cursor = ConversationCursor(plan, data_parallel_rank=0, data_parallel_size=1)
    (row,) = cursor.next_step()
    documents = open_dataset(project.root / "data" / "c").documents
    numbers = [span.document for _, span in cursor.pieces_of(row.sample_ids[0])]
    with one_process() as groups:
        model = strengthen(build_model(plan, groups)).double()
        model.config.params_dtype = torch.float64
        yield Made(model, row, [(documents[number].tolist(), talks[number][1]) for number in numbers])


def gradients(model: HybridModel, total: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(total, parameters.values()), strict=True))


def losses_alone(made: Made) -> Tensor:
    """Of the trained tokens of each conversation, read from its dataset by itself, without packed parameters."""
    losses = []
    for ids, runs in made.conversations:
        tokens, labels = torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])
        alone = made.model(tokens, torch.arange(len(ids) - 1)[None], None, labels=labels)
        losses += [alone[0, begin - 1 : end - 1] for begin, end in runs]
    return torch.cat(losses)


def test_a_row_of_an_sft_stage_has_the_losses_and_gradients_of_its_conversations_alone(made: Made) -> None:
    output, _ = SftObjective(2).forward_step(iter([made.row]), made.model)
    packed, alone = output.view_as(made.row.labels)[made.row.loss_mask > 0], losses_alone(made)
    assert alone.std() > 0.5, "flat losses would agree whatever the layers do"
    torch.testing.assert_close(packed, alone, rtol=0, atol=TOLERANCE)
    weights = torch.linspace(0.5, 1.5, len(alone), dtype=torch.float64)  # an even sum would hide what cancels
    theirs = gradients(made.model, (alone * weights).mean())
    for name, mine in gradients(made.model, (packed * weights).mean()).items():
        error = float((mine - theirs[name]).abs().max())
        assert error < TOLERANCE, f"{name}: {error:.1e}"


def test_the_row_begins_its_conversations_where_the_file_says(made: Made) -> None:
    begins = list(accumulate([len(ids) for ids, _ in made.conversations], initial=0))
    assert made.row.cu_seqlens == (*begins, begins[-1] + 7), "and has 7 tokens of padding"
    if len(made.conversations) == DEFAULT_CHUNK_SIZE:
        assert {begin % DEFAULT_CHUNK_SIZE for begin in begins} == set(range(DEFAULT_CHUNK_SIZE))
