"""The examples in the docstrings of data_tools are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import data_tools

MODULES = sorted(module.name for module in pkgutil.walk_packages(data_tools.__path__, "data_tools."))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_modules_with_examples_are_found() -> None:
    assert {"data_tools.quantities", "data_tools.samples.traces.paper"} <= set(MODULES)
