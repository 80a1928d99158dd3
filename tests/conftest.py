"""Projects for tests: one that runs, dear to build and shared by a session, and one that only plans."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.pencil_project import PencilProject, make_pencil_project
from tests.support.toy_project import Run, ToyProject, make_toy_project

settings.register_profile("any machine", deadline=None)  # a test must not fail because others share the cores
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def toy_project(tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    """A tokenizer, two sources and a recipe of 10 steps; runs go to run roots of their own."""
    return make_toy_project(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy_run(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The recipe run to its end by one process, to compare with and to copy; nobody changes it."""
    run = toy_project.run(tmp_path_factory.mktemp("toy-run"))
    assert run.code == 0, run.output
    return run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PencilProject:
    """A project at the default site, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return make_pencil_project(Path())
