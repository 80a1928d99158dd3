"""A study of pencils that is planned, and two trained arms of a toy study."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pencil_project import PencilProject
from tests.support.study_project import make_study_project
from tests.support.toy_arms import Arms, copied_arms, train_arms
from tests.support.toy_project import ToyProject


@pytest.fixture(scope="session")
def trained_arms(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `arms` copies; nobody changes it."""
    root = tmp_path_factory.mktemp("arms") / "toy"
    train_arms(toy_project, root)
    return root


@pytest.fixture
def arms(trained_arms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arms:
    """A copy, in the working directory."""
    found = copied_arms(trained_arms, tmp_path / "toy")
    monkeypatch.chdir(found.root)
    return found


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PencilProject:
    """Four arms of five stages, in the working directory; see tests/support/study_project.py."""
    monkeypatch.chdir(tmp_path)
    return make_study_project()
