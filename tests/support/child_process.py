"""Runs a function in a process of its own, for tests that kill or confine it.

The process comes from multiprocessing's `forkserver`. `os.fork` would copy a process in which the encoders' threads
have run: their locks are copied too, perhaps held, and the child may wait for them for ever.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def exit_code_of(function: Callable[..., None], *args: Any, timeout_s: float = 120.0) -> int:
    """The exit code of a process that calls `function(*args)`: 0, 1 if it raises, -9 if it is killed.

    Args:
        function: A module-level function.
        *args: Picklable arguments.
        timeout_s: The process is killed after this long.

    Raises:
        TimeoutError: When it is still running after `timeout_s`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_tools.chat_write", "data_tools.tokenize"])  # and all that they import
    child = context.Process(target=function, args=args)
    child.start()
    child.join(timeout_s)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise TimeoutError(f"{function.__name__}: not finished after {timeout_s} s")
    return child.exitcode
