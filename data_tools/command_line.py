"""What every command of this project does with an error, a closed pipe and Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from data_tools.errors import UserError

INTERRUPTED = 130
"""What shells give to a command that Ctrl-C ended."""


def exit_code_of(command: Callable[[], int | None]) -> int:
    """Runs a command and turns what the user can mend into `error: …` and a code, without a traceback.

    Args:
        command: Returns its own exit code; None means 0.

    Returns:
        The exit code; see `data_tools.errors`.
    """
    try:
        code = command()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `… | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # disk full, no permission
        print(f"error: {error.filename or 'input or output'}: {error.strerror}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("error: interrupted; no finished file was changed", file=sys.stderr)
        return INTERRUPTED
    return code or 0
