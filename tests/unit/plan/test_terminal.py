"""What a command does where nobody reads on."""

import io
import sys

import pytest

from megatron_ext.plan.render import terminal


class ClosedPipe(io.StringIO):
    """`… | head` has read enough."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_closed_pipe_is_left_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    with pytest.raises(BrokenPipeError):
        terminal().print("a line")
