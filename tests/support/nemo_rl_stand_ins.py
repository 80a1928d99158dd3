"""The few names of ray and NeMo-RL that our code imports, made from what tests/data/rl_engines/interfaces.json records.

Neither can be installed beside our own pins. Nothing of ours is replaced.
"""

from __future__ import annotations

import abc
import json
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

FACTS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "rl_engines" / "interfaces.json").read_text(encoding="utf-8")
)
NEMO_RL: dict[str, Any] = FACTS["nemo_rl"]


def install_stand_ins(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Makes the modules importable for a test.

    Returns:
        What a launcher registers: `environments` by name, `executables` by class.
    """
    registered: dict[str, dict[str, Any]] = {"environments": {}, "executables": {}}
    held = {
        "EnvironmentInterface": _interface(),
        "EnvironmentReturn": _Return,
        "ENV_REGISTRY": registered["environments"],
        "create_env": None,
        "register_env": registered["environments"].__setitem__,
        "ACTOR_ENVIRONMENT_REGISTRY": registered["executables"],
        "get_actor_python_env": None,
        "PY_EXECUTABLES": SimpleNamespace(**{name: name for name in NEMO_RL["py_executables"]}),
    }
    modules = {name: {one: held[one] for one in names} for name, names in NEMO_RL["names"].items()}
    packages = {name.rpartition(".")[0] for name in modules} | {"nemo_rl"}
    for name, values in {**{name: {} for name in packages}, **modules, "ray": {"remote": _remote}}.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return registered


class _Return[T](namedtuple("_Return", NEMO_RL["environment_return"])):  # type: ignore[misc]
    """The batched result of a step."""


def _interface() -> type:
    methods = {name: abc.abstractmethod(lambda self, *_: None) for name in NEMO_RL["abstract_methods"]}
    return type("EnvironmentInterface", (abc.ABC,), methods | {"__class_getitem__": classmethod(lambda cls, _: cls)})


def _remote(**_options: Any) -> Any:
    """Ray's decorator, in this process: the class itself."""
    return lambda actor: actor
