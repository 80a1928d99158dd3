# ruff: noqa: E402 (the stand-ins must be there before core is imported)
"""Imported first in a process, makes it one where backend `te` can run: on the stand-ins of extensions_on_cpu.py."""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # core's squared_relu is compiled; a CPU may have no compiler

from tests.support.extensions_on_cpu import install

install()

from megatron_ext.models import backends

backends.missing_for_te = tuple  # type: ignore[assignment]  # nor a GPU
