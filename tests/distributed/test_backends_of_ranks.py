"""Ranks whose machines differ do not train together: te and local order their parameters differently."""

from __future__ import annotations

import os
from unittest import mock

import pytest

from data_tools.errors import SetupError
from megatron_ext.models import backends
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from tests.support.distributed import run_distributed
from tests.support.plans import make_plan


def ask_on_different_machines(asked: str) -> str:
    """Two ranks; where rank 0 runs there is all that te needs."""
    missing = () if os.environ["RANK"] == "0" else ("a GPU",)
    plan = make_plan(layout={"data_parallel_size": 2, "backend": asked})
    with process_groups(Launch.from_environment()), mock.patch.object(backends, "missing_for_te", return_value=missing):
        try:
            return backends.backend_of_all_ranks(plan)
        except SetupError as error:
            return str(error)


def test_a_disagreement_is_refused_on_all_ranks_and_names_them() -> None:
    first, second = run_distributed(ask_on_different_machines, 2, "auto")
    assert first == second
    assert first.startswith("training.backend: auto: the ranks' machines take different layers.")
    assert "\n  te    because a GPU, Transformer Engine and mamba-ssm are here: rank 0\n" in first
    assert "\n  local because te cannot run here: it needs a GPU: rank 1\n" in first
    assert first.endswith("or set training.backend=local.")


@pytest.mark.parametrize(("asked", "answer"), [("local", "local"), ("te", "training.backend: te needs a GPU.")])
def test_all_ranks_hear_the_same(asked: str, answer: str) -> None:
    first, second = run_distributed(ask_on_different_machines, 2, asked)
    assert first == second
    assert first.startswith(answer)
