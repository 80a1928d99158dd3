"""Process groups of one rank for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from megatron.core.process_groups_config import ProcessGroupCollection

from tests.support.one_process import one_process


@pytest.fixture(scope="module")
def groups() -> Iterator[ProcessGroupCollection]:
    with one_process() as collection:
        yield collection
