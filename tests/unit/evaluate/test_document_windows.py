"""Long documents in windows, and windows in batches."""

from megatron_ext.evaluate.document_windows import Window, batches_of, windows_of
from megatron_ext.evaluate.verifiable_task import runs_of_missing


def test_every_token_lies_in_one_window() -> None:
    windows = windows_of([3, 9, 0, 4], most=4)
    assert windows == [
        Window(0, 0, 0, 3),
        Window(1, 0, 0, 4),
        Window(1, 1, 4, 4),
        Window(1, 2, 8, 1),
        Window(3, 0, 0, 4),
    ]


def test_batches_hold_every_window_once_and_no_more_tokens_than_asked() -> None:
    windows = windows_of([5, 2, 8, 3, 3], most=8)
    batches = batches_of(windows, batch_tokens=10)
    assert [[window.length for window in batch] for batch in batches] == [[8], [5, 3], [3, 2]]
    assert sorted(window for batch in batches for window in batch) == windows


def test_a_window_longer_than_a_batch_goes_alone() -> None:
    assert [len(batch) for batch in batches_of(windows_of([9, 9], most=9), batch_tokens=4)] == [1, 1]


def test_only_samples_that_are_missing_are_asked_for_again() -> None:
    there = {("a", 0), ("a", 2), ("b", 1)}
    assert runs_of_missing("a", there, 5) == [(1, 1), (3, 2)]
    assert runs_of_missing("c", there, 2) == [(0, 2)]
    assert runs_of_missing("a", {("a", sample) for sample in range(5)}, 5) == []
