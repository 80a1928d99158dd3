"""How many threads encode.

gigatoken encodes on one thread as fast as the rest of a job reads and writes, and each further thread keeps a
cache of its own, so it gets one unless more are asked for. tokenizers and sentencepiece are slow and get all cores.
"""

from __future__ import annotations

import os


def limit_threads(workers: int | None) -> None:
    """Sets how many threads the engines use; must be called before a tokenizer is loaded.

    Args:
        workers: At least 1; None: one for gigatoken, all cores for the others.
    """
    if workers is not None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)  # both libraries read it once, when they start their threads
    cores = workers or len(os.sched_getaffinity(0))
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if cores > 1 else "false"


def gigatoken_threads() -> int:
    """Threads of gigatoken: the number that was set, else one."""
    return int(os.environ.get("RAYON_NUM_THREADS") or 1)


def library_threads() -> int:
    """Threads of sentencepiece: the number that was set, else all cores."""
    return int(os.environ.get("RAYON_NUM_THREADS") or len(os.sched_getaffinity(0)))
