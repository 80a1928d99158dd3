"""Without a GPU every test of this folder says "not run: no GPU", and none of them counts as passed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.runtime.device import has_gpu
from tests.gpu.models import make_reference
from tests.support.one_process import one_process

NOT_RUN = "not run: no GPU"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not has_gpu():
                item.add_marker(pytest.mark.skipif(True, reason=NOT_RUN), append=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NOT_RUN in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"GPU tests: {len(skipped)} not run: no GPU")


@pytest.fixture(scope="module")
def groups() -> Iterator[ProcessGroupCollection]:
    """NCCL groups of one rank."""
    with one_process() as collection:
        yield collection


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the CPU's weights, and its logits and loss in reference.pt."""
    folder = tmp_path_factory.mktemp("reference")
    make_reference(folder)
    return folder
