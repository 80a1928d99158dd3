"""Settings of another engine, each with the key of our recipe that it follows from, as commented YAML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """One value of an engine's configuration.

    Attributes:
        key: In the engine's words, with dots: `actor_rollout_ref.rollout.n`.
        value: What YAML can hold.
        recipe_key: Of our recipe; "" where no key of it decides.
        note: Why it is so, where that is more than the same value.
    """

    key: str
    value: Any
    recipe_key: str
    note: str = ""

    @property
    def origin(self) -> str:
        """The recipe's key and the note, in one line."""
        return ": ".join(part for part in (self.recipe_key, self.note) if part)


class Lost(NamedTuple):
    """What an engine cannot do as our recipe asks.

    Attributes:
        recipe_key: Of our recipe.
        what: What it says, and what happens there instead.
    """

    recipe_key: str
    what: str


def yaml_of(settings: Sequence[Setting], *, head: Sequence[str]) -> str:
    """The settings as YAML, every value with its origin behind it.

    >>> print(yaml_of([Setting("a.b", 1e-6, "optimizer.lr"), Setting("a.c", None, "", "ours")], head=["defaults: x"]))
    defaults: x
    a:
      b: 1.0e-06  # optimizer.lr
      c: null  # ours
    <BLANKLINE>

    Args:
        settings: No key twice, and none that is a part of another.
        head: Lines before them.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        *sections, name = setting.key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        assert name not in node, f"{setting.key} is set once"
        node[name] = setting
    return "\n".join([*head, *_lines(tree, "")]) + "\n"


def _lines(tree: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, node in tree.items():
        if isinstance(node, Setting):
            lines.append(f"{indent}{name}: {shown(node.value)}  # {node.origin}")
        else:
            lines += [f"{indent}{name}:", *_lines(node, indent + "  ")]
    return lines


def shown(value: Any) -> str:
    """A value in YAML 1.1 and 1.2; a power of ten has a point, or YAML 1.1 would read text."""
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return json.dumps(value, ensure_ascii=False)
