"""Which code runs here: its content, its commit where it is a checkout, and the packages beside it.

The content counts: a sha256 over the Python files of `megatron_ext` and `data_tools` as they lie on the disk is the
same for a checkout, a copy and an installed wheel of one commit, and another one as soon as a line was edited.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGES = ("data_tools", "megatron_ext")
_GIT_TIMEOUT_S = 10.0
_VERSIONS_OF = (
    *("megatron-core", "torch", "triton", "transformer-engine", "mamba-ssm", "causal-conv1d"),
    *("numpy", "pydantic", "tokenizers", "gigatoken", "math-verify"),
)
"""Packages that numbers of a run may hang on."""


@dataclass(frozen=True)
class CodeVersion:
    """The code of this project that a process has.

    Attributes:
        version: Of the installed distribution; None where it is not installed.
        sha256: Of all Python files: their names and hashes, a line each, sorted.
        files: So many.
        commit: That is checked out; None where the files are in no git repository, or git cannot tell.
        changed: Files that differ from the commit, new ones among them; None where there is no commit.
    """

    version: str | None
    sha256: str
    files: int
    commit: str | None
    changed: tuple[str, ...] | None

    def to_json(self) -> dict[str, Any]:
        """As a plain mapping."""
        return asdict(self)


def code_version() -> CodeVersion:
    """What is imported here, read from the disk: edits made since the process began are seen too."""
    folders = [_folder(name) for name in _PACKAGES]
    content = content_of(folders)
    commit, changed = commit_of(folders)
    return CodeVersion(_version("megatron-ext"), *content, commit, changed)


def content_of(folders: list[Path]) -> tuple[str, int]:
    """The sha256 over the Python files below some folders, each named from its folder on, and how many they are."""
    files = {f"{folder.name}/{file.relative_to(folder)}": file for folder in folders for file in folder.rglob("*.py")}
    lines = [f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for name, file in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest(), len(files)


def commit_of(folders: list[Path]) -> tuple[str | None, tuple[str, ...] | None]:
    """The commit of a checkout, and the files below the folders that differ from it.

    A folder that lies in a repository without being part of it, as an installed package in somebody's `.venv` does,
    is of no commit.
    """
    paths = [str(folder.resolve()) for folder in folders]
    if any(_git(path, "ls-files", "--error-unmatch", "__init__.py") is None for path in paths):
        return None, None
    commit = _git(paths[0], "rev-parse", "HEAD")
    changed = _git(paths[0], "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *paths)
    if commit is None or changed is None:
        return None, None
    return commit.strip(), tuple(sorted(entry[3:] for entry in changed.split("\0") if entry))


def versions() -> dict[str, str]:
    """Python's version, and those of the packages that numbers may hang on, where they are installed."""
    found = {name: said for name in _VERSIONS_OF if (said := _version(name)) is not None}
    return {"python": platform.python_version(), **found}


def _folder(package: str) -> Path:
    spec = find_spec(package)
    origin = spec.origin if spec is not None else None
    assert origin is not None, f"{package} is not importable"
    return Path(origin).parent


def _git(folder: str, *words: str) -> str | None:
    """What git prints; None where it fails or is not installed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", folder, *words],
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
