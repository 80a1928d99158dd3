"""How a run ends: what it says, its exit code, and exit.json.

| field   | meaning                                                                            |
|---------|------------------------------------------------------------------------------------|
| code    | exit code of data_tools/errors.py; 1 for a bug                                     |
| reason  | finished, cut, crashed, StoppedError (it was asked to), or the name of the error   |
| message | what was said                                                                      |
"""

from __future__ import annotations

import errno
import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.atomic_files import write_atomically
from data_tools.errors import SetupError, TrainingError, UserError
from megatron_ext.runtime.launch import Launch

if TYPE_CHECKING:
    from megatron_ext.runtime.roll_call import RollCall

EXIT_FILE = "exit.json"

_OTHER_RANK_WAIT_S = 5.0
"""Errors are mostly the same on all ranks: the others let the main rank speak, and torchrun end them."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


class StoppedError(TrainingError):
    """A run that was asked to stop; the next one goes on with it."""


class Ending:
    """Where the end of this run is recorded, while a folder is this run's."""

    folder: Path | None = None
    roll_call: RollCall | None = None

    def close(self) -> None:
        """Leaves the roll call; comes last."""
        if self.roll_call is not None:
            self.roll_call.close()

    def record(self, *, code: int, reason: str, message: str) -> None:
        """Writes exit.json."""
        if self.folder is None:
            return
        file = self.folder / EXIT_FILE
        try:
            ending = {"code": code, "reason": reason, "message": message}
            write_atomically(file, (json.dumps(ending, indent=1) + "\n").encode())
        except OSError as error:  # the disk may be what ended the run; its message must not be lost for this one
            print(f"WARNING: {file}: not written ({error.strerror})", file=sys.stderr)

    def lost_rank(self, error: Exception) -> int | None:
        """The exit code where a collective failed because of another rank, which one rank then says; else None."""
        if self.roll_call is None:
            return None
        from megatron_ext.runtime.roll_call import is_of_other_rank

        if not is_of_other_rank(error):
            self.roll_call.say_end(error)
            return None
        lost = self.roll_call.explain(error)
        if lost is not None:
            self.record(code=lost.exit_code, reason=type(lost).__name__, message=str(lost))
            print(f"error: {lost}\nmegatron_ext.run: exit code {lost.exit_code}", file=sys.stderr, flush=True)
        return SetupError.exit_code

    def fail(self, error: UserError, launch: Launch) -> int:
        """Says an error, records it, and gives the exit code."""
        code = error.exit_code
        if self.roll_call is not None:
            self.roll_call.say_end(error)
        if launch.is_main:
            self.record(code=code, reason=type(error).__name__, message=str(error))
        else:
            time.sleep(_OTHER_RANK_WAIT_S)
            if isinstance(error, TrainingError):  # all ranks agreed on it, and the main one has said it
                return code
        speaker = "" if launch.is_main else f"rank {launch.rank}: "
        print(f"{speaker}error: {error}\n{speaker}megatron_ext.run: exit code {code}", file=sys.stderr, flush=True)
        return code


def is_of_environment(error: Exception) -> bool:
    """Whether a disk or a limit of this machine is at fault."""
    return isinstance(error, OSError) and error.errno in (*_DISK_ERRORS, *_TOO_MANY_FILES)


def environment_error(error: OSError) -> SetupError:
    """What to say of it."""
    remedy = "Make room or mend the disk"
    if error.errno in _TOO_MANY_FILES:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = f"A process may have {soft:,} open files here, at most {hard:,}"
        remedy = f"{limit}. Raise that (ulimit -n {max(2 * soft, 4096)})"
    return SetupError(
        f"{error.filename or 'a file of the run'}: {error.strerror}.\n"
        f"  The checkpoints that are there are untouched. {remedy}, and run again to go on."
    )
