"""Garbage is collected at the steps that the recipe names, and at no other."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from megatron_ext.training.garbage import collecting_every


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def python_collects() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


def test_cycles_stay_until_the_step_of_the_interval() -> None:
    with collecting_every(3) as after_step:
        alive = []
        for step in range(1, 7):
            kept = weakref.ref(_Cycle())
            after_step(step)
            alive.append(kept() is not None)
    assert alive == [True, True, False, True, True, False]


def test_what_set_up_left_behind_is_collected_before_the_first_step() -> None:
    left = weakref.ref(_Cycle())
    with collecting_every(3):
        assert left() is None


def test_where_python_did_not_collect_it_does_not_behind_the_loop() -> None:
    gc.disable()
    with collecting_every(3):
        pass
    assert not gc.isenabled()


def _fail_inside() -> None:
    with collecting_every(2):
        assert not gc.isenabled()
        raise RuntimeError


def test_python_collects_again_behind_the_loop_also_after_an_error() -> None:
    with pytest.raises(RuntimeError):
        _fail_inside()
    assert gc.isenabled()


def test_without_an_interval_nothing_changes() -> None:
    with collecting_every(0) as after_step:
        after_step(1)
        assert gc.isenabled()
