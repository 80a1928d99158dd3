"""Two stages of a module's `project`, base.yaml and child.yaml behind it, trained once; tests copy their run roots."""

from __future__ import annotations

import pytest

from tests.support.toy_project import Run, ToyProject


@pytest.fixture(scope="module")
def trained_base(project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The stage of base.yaml, run to its end."""
    base = project.run(tmp_path_factory.mktemp("base"), recipe=project.root / "base.yaml")
    assert base.code == 0, base.output
    return base


@pytest.fixture(scope="module")
def trained_child(project: ToyProject, trained_base: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The stage of child.yaml, run to its end in a run root that holds both."""
    run_root = tmp_path_factory.mktemp("chain") / "runs"
    trained_base.copied(run_root)
    child = project.run(run_root, recipe=project.root / "child.yaml")
    assert child.code == 0, child.output
    return child
