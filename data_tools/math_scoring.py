r"""Whether two answers are the same mathematics, by math-verify.

An answer is read as LaTeX, by a grammar, and compared by sympy. It is never evaluated as code: math-verify's other
way of reading, which calls sympy's `parse_expr` and so `eval`, is not used (math-verify 0.9.0, `parser.py:407`).
What an answer says decides the time and the memory all the same (`9^{9^{9}}`), so this belongs into a process that
can be ended (`scoring_server.py`), and math-verify's own alarms are off.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from functools import cache
from typing import Any

from data_tools.errors import SetupError

_WORDS = re.compile(r"(?=.*[^\W\d_]{3})[^\W\d_\s]+(?:[\s-]+[^\W\d_]+)*", re.DOTALL)


def is_same_mathematics(answer: str, truth: str) -> bool:
    r"""Whether two expressions in LaTeX are equal.

    Words are equal only as text: read as LaTeX they would be products of their letters, in any order.

    Args:
        answer: Without markup around it.
        truth: Likewise.

    Raises:
        SetupError: If math-verify is not installed.
    """
    if _WORDS.fullmatch(truth):
        return False
    load()
    from math_verify import verify

    return bool(verify(_read(truth), _read(answer), timeout_seconds=None))


def _read(text: str) -> Any:
    from math_verify import LatexExtractionConfig, parse

    return parse(f"\\boxed{{{text}}}", (LatexExtractionConfig(),), fallback_mode="no_fallback", parsing_timeout=None)


@cache
def require_installed() -> None:
    """Looks for math-verify without importing it.

    Raises:
        SetupError: It is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise _unusable("No module named 'math_verify'")


def _unusable(why: object) -> SetupError:
    return SetupError(f"the scorer math-verify cannot be used: {why}; install it with: pip install 'megatron-ext[rl]'")


@cache
def load() -> None:
    """Imports what is needed, and reads a first answer, which takes a second.

    Raises:
        SetupError: If math-verify is not installed.
    """
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise _unusable(error) from None
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its alarms are off
    _read("1")  # compiles its patterns and its grammar
