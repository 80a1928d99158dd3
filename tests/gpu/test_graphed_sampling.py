"""Sampling whose full steps are CUDA graphs gives the usual log-probabilities, also after an update of the weights.

Attention adds over whole slots and not over the longest text, so the last bits differ: 1e-4 in fp32, in bf16 what
test_rollout.py allows. A token may then be another one, so what is compared is each engine with the training path.
"""

from __future__ import annotations

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.models.backends import BackendName
from megatron_ext.recipe.schema import Precision
from megatron_ext.rollout.inprocess import InProcessEngine
from megatron_ext.rollout.protocol import Sampling
from megatron_ext.runtime.device import device
from tests.gpu.kernel_times import graphed
from tests.gpu.models import CASES
from tests.gpu.test_rollout import BF16, TOLERANCES, made
from tests.support.rollout import prompts_of


@pytest.mark.parametrize(("backend", "precision"), CASES)
def test_log_probs_are_the_training_paths_before_and_after_an_update(
    groups: ProcessGroupCollection, backend: BackendName, precision: Precision
) -> None:
    model, plan = made(groups, backend, precision)
    plan = graphed(plan)
    engine = InProcessEngine(model, plan, groups, num_slots=3, tokens_per_slot=128)
    largest, _ = TOLERANCES.get((backend, precision), BF16)
    for version in range(2):
        prompts = prompts_of((4, 33, 4, 60), num_samples=3)
        completions = engine.generate(prompts, Sampling(40))
        for completion in completions:
            ids = prompts[completion.prompt_index].ids
            row = torch.tensor([[*ids, *completion.token_ids]], device=device())
            with torch.no_grad():
                logits = model(row, torch.arange(row.shape[1], device=device())[None], None)[0].float()
            places = torch.arange(len(ids), row.shape[1], device=device())
            expected = logits.log_softmax(-1)[places - 1, row[0, places]]
            found = torch.tensor(completion.log_probs)
            torch.testing.assert_close(found, expected.cpu(), rtol=0, atol=largest)
        with torch.no_grad():
            for parameter in model.parameters():  # in place, as an optimizer does
                parameter.mul_(1.05)
        engine.load_weights(policy_version=version + 1)
