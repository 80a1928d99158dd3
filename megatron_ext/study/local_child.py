"""A node's own process: waits until it is written down, then becomes what it is to run.

    python -m megatron_ext.study.local_child FOLDER

Whoever starts it writes FOLDER/launch.json and then closes its standard input, which is closed too where that process
is killed before. So either launch.json names this process and it runs, or it ends and has begun nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from megatron_ext.study.launcher import read_launched
from megatron_ext.study.processes import identity_of


def main(argv: list[str]) -> int:
    """Becomes the command of launch.json; returns only where that fails."""
    sys.stdin.buffer.read()
    launched = read_launched(Path(argv[0]))
    if launched is None or not identity_of(os.getpid()).items() <= launched.handle.items():
        print("error: not begun: whoever started it has ended, or could not write launch.json", file=sys.stderr)
        return 4
    try:
        os.execvp(launched.command[0], launched.command)
    except OSError as error:
        print(f"error: {error.filename or launched.command[0]}: {error.strerror}", file=sys.stderr)
        return 4


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
