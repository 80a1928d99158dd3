"""What reads finished evaluations is cheap to import: a report of many must not load torch first."""

from __future__ import annotations

import subprocess
import sys

import pytest

READERS = ("results", "suite", "kept_items", "compare", "estimators")


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_of_results_loads_no_torch(reader: str) -> None:
    heavy = {"torch", "megatron", "transformers", "lm_eval"}
    program = f"import sys, megatron_ext.evaluate.{reader}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
