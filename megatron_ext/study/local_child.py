"""A node's own process: remembers itself, then becomes what it is to run.

    python -m megatron_ext.study.local_child LAUNCH_JSON RECORD COMMAND…

Only the process itself can write its pid with no moment between in which whoever started it may be killed, and it
would run unknown. RECORD is the launch.json as JSON without what identifies the process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from megatron_ext.study.launcher import Launched, write_launched
from megatron_ext.study.processes import identity_of


def main(argv: list[str]) -> int:
    """Writes launch.json and becomes the command; returns only where that fails."""
    file, record, *command = argv
    said = json.loads(record)
    launched = Launched(**{**said, "command": tuple(command), "handle": said["handle"] | identity_of(os.getpid())})
    try:
        write_launched(Path(file).parent, launched)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"error: {error.filename or command[0]}: {error.strerror}", file=sys.stderr)
        return 4


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
