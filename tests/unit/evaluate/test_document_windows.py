"""Long documents in windows."""

from megatron_ext.evaluate.document_windows import Window, windows_of


def test_every_token_lies_in_one_window() -> None:
    windows = windows_of([3, 9, 0, 4], most=4)
    assert windows == [
        Window(0, 0, 0, 3),
        Window(1, 0, 0, 4),
        Window(1, 1, 4, 4),
        Window(1, 2, 8, 1),
        Window(3, 0, 0, 4),
    ]
