r"""The program that scores replies in a process of its own, which whoever asks can end at any time.

    python -m data_tools.scoring_server MEMORY_MIB

A line of JSON comes in for each reply, and two go out:

| line                                    | holds                                                            |
|-----------------------------------------|------------------------------------------------------------------|
| in {text, truth, scorer, task, limit_s} | the reply, and how to score it (`data_tools.scoring.is_right`)   |
| out {format} or {missing}               | whether it is well formed, sent when all that scoring needs is loaded, so that a limit of time counts from here; or which library is not installed, and no more lines |
| out {accuracy} or {error}               | whether it is right, or what the scorer raised                   |

An answer that takes more memory than MEMORY_MIB, or nests deeper than Python follows, ends the process. It ends when
its input does, and some seconds after `limit_s` by itself, so a bomb does not outlive who was killed meanwhile.
"""  # noqa: E501

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
from typing import IO, Any

from data_tools.errors import SetupError
from data_tools.scoring import final_answer, is_right, is_well_formed, prepare

_GRACE_S = 5.0
"""Whoever asks ends this process at its limit; only where nobody is left it does so itself."""


def main() -> None:
    """Scores until its input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memory_mib", type=int, metavar="MEMORY_MIB", help="addresses that this process may take")
    most = parser.parse_args().memory_mib << 20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print where they like
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        try:
            prepare(asked["scorer"], task=asked["task"])
        except SetupError as error:
            _send(answers, {"missing": str(error)})
            continue
        _send(answers, {"format": is_well_formed(asked["text"])})
        _send(answers, _score(asked))


def _score(asked: dict[str, Any]) -> dict[str, Any]:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, asked["limit_s"] + _GRACE_S)
    try:
        answer = final_answer(asked["text"])
        is_accurate = is_right(answer, asked["truth"], scorer=asked["scorer"], task=asked["task"])
    except (MemoryError, RecursionError):
        raise  # for the size of the answer, not for what the scorer is
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {"accuracy": is_accurate}


def _send(answers: IO[str], line: dict[str, Any]) -> None:
    answers.write(json.dumps(line) + "\n")
    answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # who asked is gone
        main()
