"""tokenizers in a process of its own, which is loaded before anything else is.

To load a vocabulary of 131,072 ids takes tokenizers 180 MiB, of which it keeps 50. In a process that holds
gigatoken, numpy and the job already, that was the peak of the whole job. Beside a process that has nothing
loaded yet it is less, and what the allocator cannot give back stays with the other process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_tools.errors import DataError, SetupError

if TYPE_CHECKING:
    from data_tools.bpe import Encoded
    from data_tools.hugging_face import SpecialTokens


class ReferenceProcess:
    """tokenizers, asked over a pipe; a `Reference`. It ends with this object, and with the process that holds it.

    Attributes:
        name: Of the library.
        version: Of the library.
        sha256: Of the tokenizer.json that was loaded.
        largest_id: Of all tokens.
        eod_id: Of the end-of-document token; None if it has none.
        control_ids: As in `Reference`.
    """

    name = "tokenizers"

    def __init__(self, path: Path, *, special_tokens: SpecialTokens, eod_token: str) -> None:
        """Starts it and waits until it is loaded.

        Args:
            path: Of tokenizer.json.
            special_tokens: See `data_tools.bpe`.
            eod_token: The end-of-document token.

        Raises:
            DataError: If tokenizers cannot read the file.
            SetupError: If the process cannot be started, or dies.
        """
        command = [sys.executable, "-S", "-P", "-m", "data_tools.reference_server", str(path)]
        packages = [str(Path(__file__).parents[1]), *(entry or os.getcwd() for entry in sys.path)]
        try:
            self._process = subprocess.Popen(
                [*command, special_tokens, eod_token],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(packages)},
                process_group=0,  # Ctrl-C is for who started it
            )
        except OSError as error:
            raise SetupError(f"{sys.executable}: cannot be started to check a sample: {error.strerror}") from None
        self.end = weakref.finalize(self, _end, self._process)
        facts = self._answer()
        if "error" in facts:
            self.end()
            raise DataError(f"{path}: not readable by tokenizers: {facts['error']}")
        self.version: str = facts["version"]
        self.sha256: str = facts["sha256"]
        self.largest_id: int = facts["largest_id"]
        self.eod_id: int | None = facts["eod_id"]
        self.control_ids: list[int] = facts["control_ids"]

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """As in `Reference`."""
        import numpy as np

        from data_tools.bpe import joined

        return joined([np.array(ids, np.uint32) for ids in self._ask({"encode": list(texts)})])

    def encode(self, text: str) -> list[int]:
        """As in `Reference`."""
        ids: list[int] = self._ask({"encode": [text]})[0]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """As in `Reference`."""
        text: str = self._ask({"decode": [int(one) for one in ids]})
        return text

    def _ask(self, question: dict[str, Any]) -> Any:
        try:
            _pipe(self._process.stdin).write(json.dumps(question).encode() + b"\n")
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:
            raise self._death() from None
        return self._answer()

    def _answer(self) -> Any:
        line = _pipe(self._process.stdout).readline()
        if not line.endswith(b"\n"):
            raise self._death()
        return json.loads(line)

    def _death(self) -> SetupError:
        self.end()
        return SetupError(
            f"the process that checks a sample with tokenizers ended with code {self._process.returncode}; "
            "was it killed, for want of memory perhaps? Run the command again, or give --bpe tokenizers"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and waits for it, so that its CPU time counts as that of the job."""
    _pipe(process.stdout).close()
    with contextlib.suppress(BrokenPipeError):
        _pipe(process.stdin).close()
    process.wait()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "both are asked for"
    return pipe
