"""Tasks of the Language Model Evaluation Harness: found by name, their data loaded; without torch.

The harness's own index of some 15,000 task files takes seconds to read and is read only where a name is not found
below `include_path`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_tools.errors import DataError, SetupError, UsageError

_NUM_SUGGESTIONS = 5
_SEED_OF_RANDOM, _SEED_OF_NUMPY = 0, 1234
"""The harness's defaults."""


def seed_as_harness() -> None:
    """Seeds what tasks draw from where they shuffle choices, as the harness does before it loads them."""
    import numpy as np

    random.seed(_SEED_OF_RANDOM)
    np.random.seed(_SEED_OF_NUMPY)


@dataclass(frozen=True)
class LoadedTasks:
    """What one name stands for, ready to be asked.

    Attributes:
        tasks: The harness's task objects by name, their data loaded.
        groups: Its groups by name, the outermost included, where the name is a group.
        sources: Where each task's definition stands.
        content_id: Identity of definitions and data: another file, or a changed one, is another question.
    """

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    sources: Mapping[str, str]
    content_id: str

    def parts(self, name: str) -> list[tuple[str, list[str]]]:
        """What gets a result of its own, and the tasks in it: a group that makes numbers of them, or each task."""
        if name in self.groups and self.groups[name].has_aggregation:
            return [(name, list(self.tasks))]
        return [(one, [one]) for one in self.tasks]


def require_lm_eval() -> None:
    """Raises SetupError where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise SetupError(
            "lm-eval is not installed; run: pip install 'megatron-ext[eval]' --constraint requirements/constraints.txt."
        )


def require_known(names: Sequence[str], include_path: Path | None) -> None:
    """Refuses names that neither the harness nor `include_path` has.

    Args:
        names: Of tasks, groups or tags.
        include_path: A folder with task files of one's own; None for the harness's own alone.

    Raises:
        SetupError: The harness is not installed.
        UsageError: A name is unknown, or `include_path` holds no task.
    """
    require_lm_eval()
    if include_path is not None and not any(include_path.rglob("*.yaml")):
        raise UsageError(
            f"--include-path {include_path}: {'holds no .yaml file' if include_path.is_dir() else 'no such folder'}; "
            "name the folder of the task files (docs/how-to/evaluate-with-lm-eval.md)."
        )
    manager = _manager_for(tuple(names), include_path)
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        raise UsageError("\n".join(_unknown(name, manager, include_path) for name in unknown))


@cache
def load_tasks(name: str, include_path: Path | None, *, asked_as: str) -> LoadedTasks:
    """Loads the data of what a name stands for; the second time it is there already.

    Each name is loaded from the same seeds, so its documents are the same on every rank, whatever was loaded before.

    Args:
        name: That `require_known` has let pass.
        include_path: As there.
        asked_as: The request's own name: requests of one task get task objects of their own.

    Raises:
        SetupError: A package is missing that the task needs.
        DataError: A task's data cannot be had.
    """
    return _load(name, _manager_for((name,), include_path))


def _manager_for(names: tuple[str, ...], include_path: Path | None) -> Any:
    manager = _manager(include_path, with_defaults=False)
    return manager if all(_is_whole(name, manager) for name in names) else _manager(include_path, with_defaults=True)


@cache
def _manager(include_path: Path | None, *, with_defaults: bool) -> Any:
    os.environ.setdefault("TQDM_DISABLE", "1")  # a bar for each step of preparing a task; read when tqdm is imported
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=with_defaults)


def _is_whole(name: str, manager: Any) -> bool:
    """Whether an index has a name, and everything that the name's group names."""
    entry = manager.task_index.get(name)
    if entry is None:
        return False
    members = (entry.cfg or {}).get("task")
    if not isinstance(members, list):
        return True
    names = [one if isinstance(one, str) else one.get("task", one.get("group")) for one in members]
    return all(isinstance(one, list) or _is_whole(one, manager) for one in names)


def _unknown(name: str, manager: Any, include_path: Path | None) -> str:
    near = [one for one in manager.all_tasks if _is_short_for(name, one.split("_"))]
    near += difflib.get_close_matches(name, manager.all_tasks, n=_NUM_SUGGESTIONS)
    near += [one for one in manager.all_tasks if name in one]
    near = list(dict.fromkeys(near))[:_NUM_SUGGESTIONS]
    where = f"neither lm-eval nor {include_path} has it" if include_path else "lm-eval has none of this name"
    guess = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists its own."
    own = "" if include_path else " Tasks of your own: --include-path DIR."
    return f"--tasks lm-eval:{name}: unknown task: {where}; {guess}{own}"


def _is_short_for(name: str, words: list[str]) -> bool:
    """Whether a name is made of the first letters of all words of another, in order.

    >>> _is_short_for("arcc", ["arc", "challenge"]), _is_short_for("arcc", ["arc", "easy"])
    (True, False)
    """
    if not name or not words:
        return not name and not words
    lengths = range(1, min(len(name), len(words[0])) + 1)
    return any(name[:length] == words[0][:length] and _is_short_for(name[length:], words[1:]) for length in lengths)


def _load(name: str, manager: Any) -> LoadedTasks:
    seed_as_harness()
    try:
        loaded = manager.load([name])
    except (ImportError, ModuleNotFoundError) as error:
        raise SetupError(f"lm-eval:{name}: needs a package that is not installed: {error}.") from None
    except Exception as error:  # its loaders raise whatever the data libraries raise
        raise DataError(_not_loaded(name, manager, error)) from None
    tasks, groups = dict(loaded["tasks"]), dict(loaded.get("groups", {}))
    sources = {one: str(task.config.metadata.get("config_source", "")) for one, task in tasks.items()}
    return LoadedTasks(tasks, groups, sources, _content_id(tasks, groups, sources))


def _content_id(tasks: Mapping[str, Any], groups: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """Hash of the harness's version, of groups, tasks with all that they include, the code beside them, and data."""
    digest = hashlib.sha256(version("lm-eval").encode())
    for name, group in sorted(groups.items()):
        digest.update(_without_addresses([name, group.aggregate_metric_list, group.child_names]))
    for name, task in sorted(tasks.items()):
        config = task.dump_config()
        config["metadata"] = {**(config.get("metadata") or {}), "config_source": None}
        digest.update(_without_addresses([name, config]))
        splits = task.dataset.items() if hasattr(task.dataset, "items") else ()
        digest.update(repr(sorted((split, rows._fingerprint) for split, rows in splits)).encode())
    for folder in sorted({Path(source).parent for source in sources.values() if source}):
        for file in sorted(folder.glob("*.py")):
            digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _without_addresses(value: Any) -> bytes:
    """A value's text, the same in every process: functions without source are named by their place in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", json.dumps(value, sort_keys=True, default=str)).encode()


def _not_loaded(name: str, manager: Any, error: Exception) -> str:
    wanted = _hub_data(name, manager)
    if not wanted:
        return f"lm-eval:{name}: its data cannot be read: {type(error).__name__}: {error}"
    offline = [key for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if os.environ.get(key, "0") not in ("", "0")]
    why = f"{' and '.join(offline)} forbids the network" if offline else f"{type(error).__name__}: {error}"
    parts: dict[str, list[str]] = {}
    for path, *part in wanted:
        parts.setdefault(path, []).extend(part)
    sets = [
        f"{path}, {len(of_it)} parts" if len(of_it) > 1 else " ".join([path, *of_it]) for path, of_it in parts.items()
    ]
    return (
        f"lm-eval:{name}: its data are of the Hugging Face hub ({'; '.join(sets)}), and neither in the local "
        f"cache nor reachable ({why}).\n"
        f"  Where there is a network, `megatron-ext evaluate --tasks lm-eval:{name} --write-items DIR` loads all of "
        "them once; bring the cache (HF_HOME) here. Or write the task over a file of your own and name its folder with "
        "--include-path."
    )


def _hub_data(name: str, manager: Any) -> list[tuple[str, ...]]:
    """Data sets of the hub, and their parts, that a name's tasks want: neither a local builder nor a folder."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    entry = manager.task_index.get(name)
    if entry is None:
        return []
    members = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task")
    if isinstance(members, list):
        names = [one if isinstance(one, str) else one.get("task", one.get("group")) for one in members]
        return list(dict.fromkeys(data for one in names if isinstance(one, str) for data in _hub_data(one, manager)))
    config = entry.cfg or {}
    path, part = config.get("dataset_path"), config.get("dataset_name")
    if not path or path in _PACKAGED_DATASETS_MODULES or Path(path).exists():
        return []
    return [(path, str(part)) if part else (path,)]
