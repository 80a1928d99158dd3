"""Fixtures that are dear to build, shared by a whole test session."""

from __future__ import annotations

import pytest

from tests.support.toy_project import ToyProject, make_toy_project


@pytest.fixture(scope="session")
def toy_project(tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    """A tokenizer, two sources and a recipe of 10 steps; runs go to run roots of their own."""
    return make_toy_project(tmp_path_factory.mktemp("toy"))
