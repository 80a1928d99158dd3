"""A blend that changes between two phases: Megatron-Core's index reads documents again, our cursors do not.

Two sources of 2,000 documents, one document a sample. Phase 1 is 1,000 samples at 90 : 10, phase 2
another 1,000 at 50 : 50. Each token of a document is its number, so a sample's first token says which
document it is. The counts stand in docs/explanation/blending.md.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from data_tools.errors import DataError
from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.plan.stage_plan import StagePlan
from tests.support.sources import plan_reading, write_source

DOCUMENTS, LENGTH, PHASE = 2_000, 8, 1_000
SHARES = ({"a": 0.9, "b": 0.1}, {"a": 0.5, "b": 0.5})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources a (documents 1 to 2,000) and b (2,001 to 4,000) of 8 tokens a document."""
    folder = tmp_path_factory.mktemp("sources")
    for number, name in enumerate("ab"):
        first = number * DOCUMENTS + 1
        write_source(folder / name, [[first + place] * LENGTH for place in range(DOCUMENTS)])
    return folder


def _core(folder: Path, shares: dict[str, float], samples: int, *, cache: Path | None = None) -> Any:
    """Megatron-Core's blended training dataset."""
    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=LENGTH,
        blend=([str(folder / name) for name in shares], list(shares.values())),
        split="1,0,0",
        path_to_cache=str(cache or folder / "cache"),
        tokenizer=SimpleNamespace(eod=-1, pad=-1, vocab_size=5_000, unique_identifiers={}),
        add_extra_token_to_sequence=False,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, (samples, 0, 0), lambda: True, config).build()[0]


def _documents(dataset: Any, begin: int, end: int) -> list[int]:
    return [int(dataset[place]["tokens"][0]) for place in range(begin, end)]


def _again(first: list[int], second: list[int]) -> tuple[int, int, int, int]:
    """Of the second phase's samples of a, then of b: how many were read before, of how many."""
    before = set(first)
    of_a = [document for document in second if document <= DOCUMENTS]
    of_b = [document for document in second if document > DOCUMENTS]
    return len(before.intersection(of_a)), len(of_a), len(before.intersection(of_b)), len(of_b)


def test_core_reads_400_of_500_samples_again_when_it_goes_on_at_the_same_offset(folder: Path) -> None:
    first = _documents(_core(folder, SHARES[0], PHASE), 0, PHASE)
    second = _documents(_core(folder, SHARES[1], 2 * PHASE), PHASE, 2 * PHASE)
    assert _again(first, second) == (400, 500, 0, 500)


def test_core_reads_all_of_the_smaller_phase_again_when_it_starts_at_0(folder: Path) -> None:
    first = _documents(_core(folder, SHARES[0], PHASE), 0, PHASE)
    second = _documents(_core(folder, SHARES[1], PHASE), 0, PHASE)
    assert _again(first, second) == (500, 500, 100, 500)


def _plan(folder: Path) -> StagePlan:
    phases = [{name: round(share * PHASE) for name, share in shares.items()} for shares in SHARES]
    return plan_reading(
        {name: (folder / name, phases[0][name] + phases[1][name]) for name in "ab"},
        global_batch_size=PHASE,
        phases=phases,
        batch={"sequence_length": LENGTH},
        model={"vocab_size": 5_000},
    )


def test_our_cursors_read_none_again(folder: Path) -> None:
    cursor = BlendedCursor(_plan(folder), data_parallel_rank=0, data_parallel_size=1)
    steps = [[int(batch.tokens[0, 0]) for batch in cursor.next_step()] for _ in SHARES]
    assert [_again(first, second) for first, second in pairwise(steps)] == [(0, 500, 0, 500)]
    assert len(set(steps[0] + steps[1])) == 2 * PHASE


def test_core_goes_on_with_the_cache_of_replaced_files_and_we_refuse_them(tmp_path: Path) -> None:
    old = [[1] * LENGTH, [2] * LENGTH, [3] * LENGTH, [4] * LENGTH]
    new = [[9] * (4 * LENGTH)]  # as many tokens, in one document instead of four
    write_source(tmp_path / "a", old)
    plan = plan_reading({"a": (tmp_path / "a", 4)}, global_batch_size=4, batch={"sequence_length": LENGTH})
    before = _core(tmp_path, {"a": 1.0}, 4).datasets[0].document_index
    write_source(tmp_path / "a", new)
    stale = _core(tmp_path, {"a": 1.0}, 4).datasets[0].document_index
    fresh = _core(tmp_path, {"a": 1.0}, 4, cache=tmp_path / "other").datasets[0].document_index
    assert np.array_equal(stale, before)
    assert sorted(set(before.tolist())) == [0, 1, 2, 3]
    assert set(fresh.tolist()) == {0}
    with pytest.raises(DataError, match='of source "a" is not the planned'):
        BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1)
